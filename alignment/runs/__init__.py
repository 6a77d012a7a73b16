"""A run's folder: who writes it, what the run in it is of, and the names of the files there."""
