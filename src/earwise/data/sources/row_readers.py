"""Published tables, row by row: CSV, JSON lines, a JSON list of any size, an object that holds such a list."""

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from earwise.errors import DataError

Row = Mapping[str, Any]
OnSkip = Callable[[str], None]
"""Takes one line about a row that cannot be used."""

CHUNK_CHARS = 1 << 20
LONGEST_ITEM_CHARS = 1 << 22  # an item of a JSON list that is longer is taken for a broken one
_BETWEEN = re.compile(r"[\s,]*")
_NEXT_ITEM = re.compile(r"\}\s*,\s*(?=\{)")


def csv_rows(
    path: Path,
    needed: Sequence[str],
    on_skip: OnSkip,
    *,
    delimiter: str = ",",
    quoted: bool = True,
    header: Sequence[str] | None = None,
) -> Iterator[tuple[str, Row]]:
    """The rows of a CSV or TSV file as `(where, row)`; blank lines and `#` lines before the rows are passed over.

    Args:
        path: The table; bytes that are not UTF-8 are read as Windows-1252 (ClothoAQA and MELD hold some).
        needed: Columns that must be there.
        on_skip: Takes a line for every row with another number of fields than the header.
        delimiter: Between fields.
        quoted: Whether fields may stand in double quotes; where False a quote is an ordinary character.
        header: The columns, where the file has no header line.
    Raises:
        DataError: if the file cannot be read, or a column is missing.
    """
    reader = csv.reader(
        _lines(path),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=header is not None,  # AudioSet writes a blank after its commas
    )
    columns = list(header) if header is not None else [name.strip() for name in next(reader, [])]
    if missing := [name for name in needed if name not in columns]:
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
        where = f"{path}:row {reader.line_num}"
        if len(fields) == len(columns):
            yield where, dict(zip(columns, fields, strict=True))
        else:
            on_skip(f"{where}: {len(fields)} fields where the header has {len(columns)}")


def json_rows(
    path: Path, needed: Sequence[str], on_skip: OnSkip, *, key: str | None = None
) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON list, of JSON lines, or of the list under `key` of one object, as `(where, row)`.

    Raises:
        DataError: if the file cannot be read, or the first object lacks a field (another file).
    """
    first = True
    for where, value in _json_values(path, on_skip, key):
        if not isinstance(value, dict):
            on_skip(f"{where}: a JSON {type(value).__name__} where an object is expected")
            continue
        missing = [name for name in needed if name not in value]
        if missing and first:
            raise DataError(f"{where}: field {missing[0]!r} is missing, found {', '.join(value)[:80]}; another file?")
        first = False
        if missing:
            on_skip(f"{where}: field {missing[0]!r} is missing")
        else:
            yield where, value


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, as `(where, line)`.

    Raises:
        DataError: if it cannot be read.
    """
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"{path}:row {number}", line.strip()


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle):
                if number == 0:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError:
                    yield line.decode("cp1252", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _json_values(path: Path, on_skip: OnSkip, key: str | None) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as handle:
            head = handle.read(CHUNK_CHARS)
            opened = re.match(r"\s*\[", head)
            if opened is None and key is not None:
                opened = re.search(rf'"{re.escape(key)}"\s*:\s*\[', head)
            if opened is not None:
                yield from _listed(path, handle, head[opened.end() :], on_skip)
                return
            handle.seek(0)
            yield from _one_a_line(path, handle, on_skip)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _one_a_line(path: Path, handle: IO[str], on_skip: OnSkip) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(handle, 1):
        if not line.strip():
            continue
        where = f"{path}:row {number}"
        if "\ufffd" in line:
            on_skip(f"{where}: not UTF-8")
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            on_skip(f"{where}: not JSON ({error})")
            continue
        yield where, value


def _listed(path: Path, handle: IO[str], buffer: str, on_skip: OnSkip) -> Iterator[tuple[str, Any]]:
    """The items of an opened list. After a broken item reading goes on at the next object that begins after a comma."""
    decoder, at, number = json.JSONDecoder(), 0, 0
    while True:
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # matches the empty string
        if at == len(buffer):
            buffer, at = handle.read(CHUNK_CHARS), 0
            if not buffer:
                on_skip(f"{path}:item {number + 1}: the list breaks off here; download the file again")
                return
            continue
        if buffer[at] == "]":
            return
        try:
            value, end = decoder.raw_decode(buffer, at)
        except ValueError as error:
            more = handle.read(CHUNK_CHARS) if len(buffer) - at < LONGEST_ITEM_CHARS else ""
            if more:  # perhaps the item only goes on in the next chunk
                buffer, at = buffer[at:] + more, 0
                continue
            number += 1
            on_skip(f"{path}:item {number}: not JSON ({error.args[0].split(':')[0]})")
            following = _NEXT_ITEM.search(buffer, at)
            if following is None:
                return
            at = following.end()
            continue
        number += 1
        if "\ufffd" in buffer[at:end]:
            on_skip(f"{path}:item {number}: not UTF-8")
        else:
            yield f"{path}:item {number}", value
        at = end
