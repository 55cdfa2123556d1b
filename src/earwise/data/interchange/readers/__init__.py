"""Readers of other programs' data sets, one form a file; `detection.py` holds their table."""
