"""Decoding a few rows quickly on a CPU: prepacked weights and fused layers."""
