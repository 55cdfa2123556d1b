"""Checks that a data set needs ears and leaks nothing."""
