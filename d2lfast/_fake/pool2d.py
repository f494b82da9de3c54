"""Shape functions."""
