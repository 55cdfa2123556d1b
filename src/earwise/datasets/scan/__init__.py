"""Decoding every clip of a manifest once, in several processes or on Ray."""
