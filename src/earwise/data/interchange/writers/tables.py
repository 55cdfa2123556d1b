"""Writes a manifest as a CSV or TSV table that spreadsheets open, one line per question: `path, question, A, B, ...`.

The file begins with a byte order mark, without which spreadsheets take UTF-8 for another encoding. Cells that begin
with a sign that spreadsheets execute are not changed: the table is data, and is read back as it was.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from earwise import progress
from earwise.data import manifest
from earwise.data.interchange.writers.single_clip import SingleClipRow, single_clip
from earwise.data.readers.row_files import count_rows
from earwise.errors import DataError
from earwise.files import atomic_write, relative_path

TEXT_COLUMNS = ("reasoning", "task", "category", "difficulty", "source", "licence", "group", "split", "language")
BYTE_ORDER_MARK = "\ufeff"


def write_table(path: Path, out: Path, *, delimiter: str = ",") -> int:
    """Write the table of a manifest.

    Args:
        path: Manifest; it is read twice.
        out: Table to write; audio paths start from its folder.
        delimiter: Character between cells.
    Returns:
        Number of rows.
    Raises:
        DataError: for a row that a table cannot hold, such as one with two clips, or more than ten options.
    """
    most_choices, used, other = 0, set[str](), dict[str, None]()
    for row in _rows(path):
        most_choices = max(most_choices, len(row.example.choices))
        used |= {name for name in TEXT_COLUMNS if getattr(row.example, name)}
        used |= {name for name, value in (("start", row.start), ("end", row.end)) if value}
        other |= dict.fromkeys(name for name, value in row.example.meta.items() if isinstance(value, str | int | float))
    if most_choices > 10:
        raise DataError(f"{path}: a row has {most_choices} options; a table holds ten. Write --to parquet")
    letters = list(ascii_uppercase[:most_choices])
    names = ["id", "path", *(name for name in ("start", "end") if name in used), "question", *letters, "answer"]
    names += [name for name in TEXT_COLUMNS if name in used]
    names += [name for name in other if name not in names]
    count = 0
    with atomic_write(out) as handle:
        handle.write(BYTE_ORDER_MARK)
        writer = csv.writer(handle, delimiter=delimiter, lineterminator="\n")
        writer.writerow(names)
        for row in _rows(path):
            writer.writerow(_cells(row, names, letters, out.parent))
            count += 1
    return count


def _rows(path: Path) -> Iterator[SingleClipRow]:
    examples = manifest.iterate(path, check_files=True)
    for example in progress.track(examples, "rows read", count_rows(path)):
        if len(example.answer) > 1:
            raise DataError(f"row {example.id!r}: several accepted answers; a table holds one. Write --to parquet")
        yield single_clip(example, "a table")


def _cells(row: SingleClipRow, names: Sequence[str], letters: Sequence[str], folder: Path) -> list[Any]:
    example = row.example
    values: dict[str, Any] = {name: getattr(example, name) or "" for name in TEXT_COLUMNS}
    values |= {"id": example.id, "path": Path(relative_path(row.file, folder)).as_posix(), "question": example.question}
    values |= {"answer": row.answer, "start": row.start or "", "end": "" if row.end is None else row.end}
    values |= dict(zip(letters, [*example.choices, *[""] * (len(letters) - len(example.choices))], strict=True))
    return [values[name] if name in values else example.meta.get(name, "") for name in names]
