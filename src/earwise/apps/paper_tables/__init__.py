"""The papers' own tables: published figures, and beside them what a model reaches here."""
