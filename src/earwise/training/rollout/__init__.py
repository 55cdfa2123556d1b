"""Rollouts for GRPO.

Prompts are drawn, completions sampled and rewarded (`collect.py`), then packed into micro-batches (`batching.py`).
"""
