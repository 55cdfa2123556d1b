"""Converters of officially released checkpoints into our folder layout."""
