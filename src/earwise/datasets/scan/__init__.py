"""Decodes every audio file of a manifest once, on several processes or on Ray, and measures it."""
