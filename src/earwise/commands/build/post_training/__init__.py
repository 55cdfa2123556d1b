"""Commands that build data for post-training: puzzles from unlabelled sound, rows that need their sound, and words."""
