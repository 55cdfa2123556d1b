"""Rollouts for GRPO: prompts are drawn, completions sampled and rewarded (`collect.py`), then packed (`batching.py`)."""
