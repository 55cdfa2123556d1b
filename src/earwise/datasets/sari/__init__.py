"""SARI's training data (arXiv 2504.15900): captions, questions, chains and pass rates."""
