"""The small model that ships with the package: its parts, its weights and how they are fetched."""
