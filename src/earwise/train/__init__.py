"""Stages, one loop. `run.train` is the entry."""
