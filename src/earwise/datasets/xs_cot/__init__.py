"""XS-CoT's training data: spoken instructions and their cross-lingual chains of thought."""
