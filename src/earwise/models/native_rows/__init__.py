"""The rows of the native table, one family a file, each with a `ROW`; see `models/native.py`."""
