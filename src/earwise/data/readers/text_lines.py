"""The one reader of text files by lines, of JSON lines, and of CSV tables; every other module reads through it.

A line ends at a line feed (or a carriage return and a line feed), and nowhere else: U+2028 and U+0085 are ordinary
characters of a JSON string. A byte order mark is dropped, `.gz` is decompressed while reading, a line break inside a
quoted CSV cell belongs to the cell, and a file in UTF-16 is refused in one line. Errors name the file and the line.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from earwise.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
DELIMITERS = (",", ";", "\t", "|")
csv.field_size_limit(1 << 24)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of half a character of more than 16 bits; two in a row are a character."""


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading; one that is compressed with gzip, whatever its name, is decompressed."""
    with path.open("rb") as handle:
        is_compressed = handle.read(2) == GZIP_MAGIC
    return cast("IO[bytes]", gzip.open(path)) if is_compressed else path.open("rb")


def numbered_lines(path: Path, *, fallback: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, counted from 1; each keeps its line feed.

    Args:
        path: UTF-8 text, perhaps compressed with gzip.
        fallback: Encoding of lines that are not UTF-8; None refuses them.
    Raises:
        DataError: if the file cannot be read, or is not UTF-8 text; it names the line.
    """
    try:
        with open_bytes(path) as handle:
            for number, line in enumerate(handle, 1):
                if number == 1:
                    refuse_utf16(path, line)
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, _decode(line, path, number, fallback)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error


def json_lines(path: Path, *, on_bad: Callable[[str], None] | None = None) -> Iterator[tuple[int, Any]]:
    """The values of a JSON Lines file with the numbers of their lines; blank lines are left out.

    Args:
        path: The file.
        on_bad: Called with the message about each line that is not JSON, which is then left out; None raises it.
    Raises:
        DataError: as `numbered_lines`, and for a line that is not JSON.
    """
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            value = parse_json(line, f"{path}:row {number}")
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(str(error))
        else:
            yield number, value


def parse_json(line: str, location: str) -> Any:
    """The value of a line of JSON.

    Args:
        line: The line.
        location: Prefix of the error message.
    Raises:
        DataError: if it is not JSON, or holds half a character (an unpaired surrogate such as `\\ud800`), which no
            tokenizer and no file can hold.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "; take off the comma at its end" if line.rstrip().endswith("},") else ""
        raise DataError(f"{location}: not JSON ({error}); a manifest is one JSON object a line{hint}") from error
    if message := half_character(line, value):
        raise DataError(f"{location}: {message}")
    return value


def half_character(text: str, value: Any) -> str:
    """What is wrong with a value that holds an unpaired surrogate; empty for any other.

    Args:
        text: The JSON that it was read from.
        value: The value.
    """
    if _SURROGATE.search(text) is None:
        return ""
    written = json.dumps(value, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError as error:
        before = written[max(0, error.start - 24) : error.start]
        return (
            f"half a character, {written[error.start]!r}, after {before!r} (a text cut inside an emoji?); take it out"
        )
    return ""


def read_text(path: Path) -> str:
    """The whole text of a UTF-8 file, perhaps compressed with gzip, without a byte order mark.

    Raises:
        DataError: as `numbered_lines`.
    """
    return "".join(line for _, line in numbered_lines(path))


def csv_rows(
    path: Path, *, delimiter: str | None = None, required: Sequence[str] = (), fallback: str | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV table with a header, each with the number of the line on which it ends.

    Spreadsheets' habits are understood: UTF-16 with a byte order mark, a first line `sep=;`, and empty cells after the
    last column.

    Args:
        path: The table.
        delimiter: Character between the cells; None takes the one of `DELIMITERS` that the header has most often
            outside quotes.
        required: Columns that the table must have.
        fallback: As in `numbered_lines`.
    Raises:
        DataError: if the file cannot be read, a column is missing or stands twice, or a row has another number of cells
            than the header.
    """
    lines = _table_lines(path, fallback)
    header_line = next((line for line in lines if line.strip()), "")
    num_lines_before = 0
    if header_line.lower().startswith("sep=") and len(header_line.strip("\r\n")) == 5:
        delimiter, header_line, num_lines_before = header_line[4], next(lines, ""), 1
    separator = delimiter or max(DELIMITERS, key="".join(header_line.split('"')[::2]).count)
    reader = csv.reader(_chain(header_line, lines), delimiter=separator, strict=True)
    columns: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            number = reader.line_num + num_lines_before
            raise DataError(f"{path}:row {number}: not CSV ({error}); quote cells that hold quotes") from error
        if not any(cell.strip() for cell in cells):
            continue
        number = reader.line_num + num_lines_before
        if columns is None:
            columns = _checked_header(_without_trailing(cells, 0), path, required)
            continue
        cells = _without_trailing(cells, len(columns))
        if len(cells) != len(columns):
            raise DataError(
                f"{path}:row {number}: {len(cells)} cells where the header has {len(columns)}; quote cells that hold "
                f"{separator!r}"
            )
        yield number, dict(zip(columns, cells, strict=True))
    if columns is None:
        raise DataError(f"{path}: is empty; write a header and at least one row")


def _checked_header(cells: list[str], path: Path, required: Sequence[str]) -> list[str]:
    """The names of the columns; required ones must be there, and none twice."""
    columns = [cell.strip() for cell in cells]
    for name in required:
        if name not in columns:
            raise DataError(f"{path}: column {name!r} is missing, found {', '.join(columns)[:80]}")
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{path}: column {name!r} stands twice in its header; rename one")
    return columns


def _without_trailing(cells: list[str], num_columns: int) -> list[str]:
    """The cells without empty ones at the end, as far as there are more than `num_columns`."""
    while len(cells) > num_columns and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _table_lines(path: Path, fallback: str | None) -> Iterator[str]:
    """The lines of a table; UTF-16 is accepted if the file says so by a byte order mark."""
    try:
        with open_bytes(path) as handle:
            head = handle.read(2)
        if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            with open_bytes(path) as handle, io.TextIOWrapper(handle, encoding="utf-16", newline="") as text:
                yield from text
            return
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    yield from _without_numbers(numbered_lines(path, fallback=fallback))


def _without_numbers(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    return (line for _, line in lines)


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


_MULTIBYTE = re.compile(rb"[\x80-\xff]{6}")
"""What no text in Windows-1252 has: six letters beyond ASCII in a row. Chinese encodings have them from three
characters on, and would be read as nonsense."""


def _decode(line: bytes, path: Path, number: int, fallback: str | None) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        if fallback is not None:
            if fallback == "cp1252" and _MULTIBYTE.search(line):
                raise not_utf8(path, number, error) from error
            return line.decode(fallback, errors="replace")
        raise not_utf8(path, number, error) from error


def not_utf8(path: Path, number: int, error: UnicodeDecodeError) -> DataError:
    """The error of a line that is not UTF-8."""
    return DataError(
        f"{path}:row {number}: is not UTF-8 text ({error.reason} at byte {error.start} of the line); save the file as "
        "UTF-8"
    )


def refuse_utf16(path: Path, line: bytes) -> None:
    """Refuse a file in UTF-16 or UTF-32, which spreadsheets and Windows shells write."""
    head = line[:64]
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or head.count(b"\0") > len(head) // 3
    if is_utf16:
        raise DataError(f"{path}: is UTF-16 text; save it as UTF-8")
    if b"\0" in head:
        raise DataError(f"{path}: is no text file; give a file of rows, such as JSON lines")
