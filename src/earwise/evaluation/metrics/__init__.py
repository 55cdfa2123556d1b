"""Scorers of completions and the statistics of scores."""
