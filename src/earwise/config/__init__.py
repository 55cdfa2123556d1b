"""What a recipe and its stages may contain, and how profiles, arms and overrides change it."""
