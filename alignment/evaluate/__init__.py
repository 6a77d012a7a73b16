"""Measures of finished runs, with their uncertainty, and the one-file report that shows them."""
