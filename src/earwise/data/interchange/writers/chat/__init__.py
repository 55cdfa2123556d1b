"""Writers of the rows that chat programs train on.

`conversation.py` takes an example apart, `forms.py` words it in each program's keys, `exporting.py` writes the file and
reads every row back before it counts as written.
"""
