"""Strength borrowed from other tables of runs: what they share (`population`) and where they come from (`sources`)."""
