"""MetaOptimize on a GPU: checks, a table of speeds, a short race. ``make gpu`` runs all of it."""
