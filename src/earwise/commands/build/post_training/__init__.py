"""Commands that build data for post-training: puzzles from unlabelled sound, and the rows that need their sound."""
