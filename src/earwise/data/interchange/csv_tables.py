"""Reads CSV and TSV tables as spreadsheets write them: any usual delimiter, a byte order mark, UTF-16, `sep=;`.

The first line names the columns. `AudioFolder` tables (`metadata.csv` beside the clips) are such tables too.
"""

import csv
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import DatasetLocation, ForeignRow
from earwise.errors import DataError

DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_MAX_CELL_CHARS = 1 << 20


def read(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """One row per line of the table; a cell may contain line breaks. Blank lines are skipped.

    Raises:
        DataError: if the file cannot be read, has no header, or a line has more cells than the header.
    """
    path = location.path
    csv.field_size_limit(_MAX_CELL_CHARS)
    try:
        with _open_text(path) as handle:
            yield from _rows(handle, path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not text in UTF-8, UTF-16 or Windows-1252 ({error.reason}); save it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}: is no table ({error}); save it as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _rows(handle: IO[str], path: Path) -> Iterator[ForeignRow]:
    header_line = handle.readline()
    lines_before = 0
    delimiter = None
    if header_line.strip().lower().startswith("sep=") and len(header_line.strip()) <= 5:
        delimiter = header_line.strip("\r\n")[4:5] or "\t"
        header_line, lines_before = handle.readline(), 1
    delimiter = delimiter or sniff_delimiter(header_line)
    reader = csv.reader(_chain(header_line, handle), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(reader, [])]
    while header and not header[-1]:
        header.pop()
    if len(header) < 2 or not all(header):
        raise DataError(f"{path}: the first line {header_line.strip()!r:.60} does not name columns; add a header line")
    if repeated := next((name for name in header if header.count(name) > 1), None):
        raise DataError(f"{path}: two columns are called {repeated!r}; rename one of them")
    for cells in reader:
        location = f"{path}:row {reader.line_num + lines_before}"
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            raise DataError(
                f"{location}: {len(cells)} cells where the header names {len(header)} columns; put quotes around cells "
                f"that contain {delimiter!r}"
            )
        yield ForeignRow(location, dict(zip(header, cells, strict=False)), path.parent)


def sniff_delimiter(header_line: str) -> str:
    r"""The delimiter of a table, by its header line: the candidate that occurs most often outside quotes.

    >>> sniff_delimiter('path;"question, in full";answer'), sniff_delimiter("path\tanswer")
    (';', '\t')
    """
    unquoted = "".join(header_line.split('"')[::2])
    return max(DELIMITERS, key=unquoted.count)


def _chain(first_line: str, handle: IO[str]) -> Iterator[str]:
    yield first_line
    yield from handle


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """Open a table, plain or compressed with gzip, in its encoding."""
    with _open_binary(path) as handle:
        head = handle.read(4)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if encoding is None:
        encoding = "utf-8" if _is_utf8(path) else "cp1252"
    with _open_binary(path) as handle, io.TextIOWrapper(handle, encoding=encoding, newline="") as text:
        yield text


def _open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed if its name says gzip."""
    handle = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 (the callers close it)
    return cast(IO[bytes], handle)


def _is_utf8(path: Path) -> bool:
    """Whether all lines of a file are UTF-8; a table with one line of Windows-1252 was written in it as a whole."""
    with _open_binary(path) as handle:
        for line in handle:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return False
    return True
