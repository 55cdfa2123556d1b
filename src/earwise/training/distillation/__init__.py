"""Distillation: a teacher beside the policy, and the divergence of the two on one tree of completions."""
