"""Losses, rewards, curricula and chain compression: pure functions without models or files."""
