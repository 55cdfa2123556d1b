"""Results of runs in the log forms of other programs; see `table.FORMS`."""
