"""Engines turn prompts with sound into completions: `local` (listen once, branch many) and `remote`."""
