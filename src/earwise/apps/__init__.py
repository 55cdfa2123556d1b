"""Whole programs on top of the library: the demo, ablations and a recipe's evaluation."""
