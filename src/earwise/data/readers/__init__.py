"""Readers of files of rows: text by lines, JSON, CSV, and audio that stands inside a row.

`row_files.read_rows` reads a file of any kind as rows; `text_lines` is the only reader of lines and of CSV tables.
"""
