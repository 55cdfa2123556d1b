"""The commands that train: `train` with its plan, `ablate`, and `recipe`."""
