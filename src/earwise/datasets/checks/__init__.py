"""Checks of data sets: text-only bias, leaks between splits, copies, contamination, silence, licences."""
