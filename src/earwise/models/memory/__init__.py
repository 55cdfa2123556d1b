"""Memory that a model needs for training and inference, computed without its weights."""
