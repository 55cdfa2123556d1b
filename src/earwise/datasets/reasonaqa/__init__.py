"""ReasonAQA, Mellow's training data (arXiv:2503.08540), built from captions of clips."""
