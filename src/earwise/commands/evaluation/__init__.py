"""The commands that measure: `evaluate`, `compare` and `report`."""
