"""The optimizer, its learning-rate schedule, and float32 masters of what it updates."""
