"""Figures over many rows that are more than the mean of a score: over a corpus, over draws, over orders of options."""
