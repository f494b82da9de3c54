"""Swapping the layers of a model."""

convert = revert = report = None
