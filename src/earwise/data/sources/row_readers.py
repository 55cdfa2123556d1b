"""Reads published files row by row: CSV, JSON lines, a JSON list of any size, or an object that contains such a list.

Used by every reader in this folder. A file that is not the expected one raises DataError. A row that is damaged is
reported to `on_skip` as one line naming file and row, and reading continues with the next row. Only the current row is
held in memory, so a list of a million items needs no more memory than one item.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.data.readers.json_list import CHUNK_CHARS, list_items
from earwise.data.readers.text_lines import numbered_lines, open_bytes
from earwise.errors import DataError

Row = Mapping[str, Any]
OnSkip = Callable[[str], None]
"""Callback that receives one line about a row that cannot be used."""


def csv_rows(
    path: Path,
    required: Sequence[str],
    on_skip: OnSkip,
    *,
    delimiter: str = ",",
    quoted: bool = True,
    header: Sequence[str] | None = None,
) -> Iterator[tuple[str, Row]]:
    """Read a CSV or TSV file as pairs `(location, row)`; blank lines and leading comment lines (`#`) are skipped.

    Args:
        path: File; bytes that are not UTF-8 are read as Windows-1252 (ClothoAQA and MELD contain some).
        required: Columns that the file must have.
        on_skip: Callback for every row whose number of fields differs from the header's.
        delimiter: Character between fields.
        quoted: Whether fields may be enclosed in double quotes; False treats a quote as an ordinary character.
        header: Column names of a file without a header line.
    Raises:
        DataError: if the file cannot be read, or a column is missing.
    """
    reader = csv.reader(
        _lines(path),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=header is not None,  # AudioSet writes a space after its commas
    )
    columns = list(header) if header is not None else [name.strip() for name in next(reader, [])]
    if missing := [name for name in required if name not in columns]:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing, found {', '.join(columns)[:80]}; is this the published file?"
        )
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            on_skip(f"{path}:row {reader.line_num}: not CSV ({error})")
            continue
        if not fields or (header is not None and fields[0].startswith("#")):
            continue
        location = f"{path}:row {reader.line_num}"
        if len(fields) == len(columns):
            yield location, dict(zip(columns, fields, strict=True))
        else:
            on_skip(f"{location}: {len(fields)} fields where the header has {len(columns)}")


def json_rows(
    path: Path, required: Sequence[str], on_skip: OnSkip, *, key: str | None = None
) -> Iterator[tuple[str, Row]]:
    """Read the objects of a JSON list, of JSON lines, or of a list inside one object, as pairs `(location, row)`.

    Args:
        path: File.
        required: Fields that every object must have.
        on_skip: Callback for every item that is not valid JSON, no object, or lacks a field.
        key: Key of the list, if the file is one object that contains the list.
    Raises:
        DataError: if the file cannot be read, or the first object lacks a field (it is probably another file).
    """
    is_first = True
    for location, value in _json_values(path, on_skip, key):
        if not isinstance(value, dict):
            on_skip(f"{location}: a JSON {type(value).__name__} where an object is expected")
            continue
        missing = [name for name in required if name not in value]
        if missing and is_first:
            raise DataError(
                f"{location}: field {missing[0]!r} is missing, found {', '.join(value)[:80]}; another file?"
            )
        is_first = False
        if missing:
            on_skip(f"{location}: field {missing[0]!r} is missing")
        else:
            yield location, value


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, as pairs `(location, line)`.

    Raises:
        DataError: if the file cannot be read.
    """
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"{path}:row {number}", line.strip()


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file; a line that is not UTF-8 is decoded as Windows-1252."""
    return (line for _, line in numbered_lines(path, fallback="cp1252"))


def _json_values(path: Path, on_skip: OnSkip, key: str | None) -> Iterator[tuple[str, Any]]:
    """The JSON values of a file that is a list, contains a list under `key`, or has one value per line."""
    try:
        with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="replace") as handle:
            head = handle.read(CHUNK_CHARS)
            list_start = re.match(r"\s*\[", head)
            if list_start is None and key is not None:
                list_start = re.search(rf'"{re.escape(key)}"\s*:\s*\[', head)
            if list_start is not None:
                yield from list_items(path, handle, head[list_start.end() :], on_skip)
                return
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    yield from _json_lines(path, on_skip)


def _json_lines(path: Path, on_skip: OnSkip) -> Iterator[tuple[str, Any]]:
    """The values of a file with one JSON value per line."""
    for number, line in numbered_lines(path, fallback="utf-8"):
        if not line.strip():
            continue
        location = f"{path}:row {number}"
        if "\ufffd" in line:
            on_skip(f"{location}: is not UTF-8 text; save the file as UTF-8")
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            on_skip(f"{location}: not JSON ({error})")
            continue
        yield location, value
