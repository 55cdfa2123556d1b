"""SARI's training data (arXiv:2504.15900): captions, questions, pass rates and chains of reasoning."""
