"""Reads CSV and TSV tables as spreadsheets write them, one row per line; the first line names the columns.

`AudioFolder` tables (`metadata.csv` beside the clips) are such tables too. `readers/text_lines.py` reads the lines.
"""

from collections.abc import Iterator

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import DatasetLocation, ForeignRow
from earwise.data.readers.text_lines import csv_rows
from earwise.errors import DataError

FALLBACK_ENCODING = "cp1252"  # what spreadsheets on Windows write if they are not asked for UTF-8


def read(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """One row per line of the table; a cell may contain line breaks. Blank lines are skipped.

    Raises:
        DataError: if the file cannot be read, its first line does not name columns, or a line has another number of
            cells.
    """
    path = location.path
    for number, values in csv_rows(path, fallback=FALLBACK_ENCODING):
        if len(values) < 2 or "" in values:
            raise DataError(
                f"{path}: the first line does not name columns ({', '.join(values)[:60]}); add a header line"
            )
        yield ForeignRow(f"{path}:row {number}", values, path.parent)
