"""VoiceBench's rules (arXiv:2410.17196): option letters, refusals, verifiable instructions, BIG-bench Hard."""
