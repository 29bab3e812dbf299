"""The joint fit of a law's forms to a table, its draws, its ordered validation and what is odd about the table."""
