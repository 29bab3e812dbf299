"""Every constant of the laws: its value, where it comes from, and what moves when it is halved or doubled."""
