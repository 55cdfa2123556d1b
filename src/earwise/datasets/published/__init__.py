"""Published data sets turned into questions."""
