"""Reads and writes data sets in the forms of other programs: tables, `datasets`, speech toolkits, archives.

A reader yields `ForeignRow`s, `native_rows.py` turns them into rows of a manifest, and `importing.py` writes the
manifest with the clips that were stored inside the data set. Wherever a manifest is taken, such a data set may be named
instead (`data/manifest_path.py`); `earwise build convert` converts both ways.
"""
