"""XS-CoT's training data (arXiv:2504.20835): spoken instructions with cross-lingual chains of thought."""
