"""Weights of lower precision than float32: the LoRA beside them, and the exact values of what was trained."""
