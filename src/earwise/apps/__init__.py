"""Whole programs on top of the library: training with evaluation, ablations, demos."""
