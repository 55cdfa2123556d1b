"""Writers of other programs' forms; `exporting.py` holds their table."""
