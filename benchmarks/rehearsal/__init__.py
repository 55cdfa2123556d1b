"""The rehearsal: every command of the papers' pages, from downloads to the table, at the published settings and a small
size; see `benchmarks/rehearse.py`."""
