"""Files of rows: which reader reads a file, and the same rows as plain JSON lines for the index.

A manifest may be JSON lines, a JSON list, or either of them compressed with gzip; `READERS` names the readers of other
kinds of files. Training finds a row by its position in a file with one row a line, so the rows of all other files are
written to such a file once, under `EARWISE_HOME`, and read from there until the original changes.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from earwise.data.readers.json_list import CHUNK_CHARS, list_items
from earwise.data.readers.text_lines import GZIP_MAGIC, half_character, json_lines, open_bytes
from earwise.errors import DataError
from earwise.files import cache_dir, write_jsonl

Reader = Callable[[Path], Iterator[tuple[str, Mapping[str, Any]]]]
"""Reads a file as pairs of location (such as `questions.csv:row 3`) and row (see `data/formats/convert.py`)."""
OnBad = Callable[[str], None]
"""Is told of a row that cannot be used, in one line."""
READERS: dict[str, Reader] = {}
"""Suffix of a file, in lower case -> its reader; any other file is JSON."""
WRAPPING_KEYS = ("data", "rows", "examples", "annotations", "items")
"""Keys under which a JSON object may hold the list of rows."""


def read_rows(path: Path, *, on_bad: OnBad | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file of any kind, with their locations.

    Args:
        path: The file.
        on_bad: Called with the message about each row that is no JSON object, which is then left out; None raises it.
    Raises:
        DataError: if it cannot be read, or a row is not a JSON object.
    """
    reader = READERS.get(path.suffix.lower())
    for location, row in _json_rows(path, on_bad) if reader is None else reader(path):
        if isinstance(row, Mapping):
            yield location, row
            continue
        message = (
            f"{location}: a JSON {type(row).__name__} where an object is expected; a manifest is one object a line"
        )
        if on_bad is None:
            raise DataError(message)
        on_bad(message)


def is_plain_lines(path: Path) -> bool:
    """Whether a file is JSON lines as they are, so that a row can be found by its position in bytes.

    Raises:
        DataError: if the file cannot be read.
    """
    if path.suffix.lower() in READERS:
        return False
    try:
        with path.open("rb") as handle:
            return handle.read(2) != GZIP_MAGIC and not _is_document(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def count_rows(path: Path) -> int | None:
    """Number of rows of a file, for the time that work on it will take; None where counting would mean parsing it.

    A million lines of 500 bytes are counted in about half a second.
    """
    if not is_plain_lines(path):
        return None
    with path.open("rb") as handle:
        return sum(not line.isspace() for line in handle)


def line_copy(path: Path, rows: Callable[[], Iterable[Mapping[str, Any]]]) -> Path:
    """The file with one row a line that stands for a file of another kind; written if the original is new or changed.

    Args:
        path: The original.
        rows: Makes the rows to write; called only if they are needed.
    Returns:
        A file under `EARWISE_HOME/rows`.
    """
    stat = path.stat()
    name = hashlib.blake2b(str(path.resolve()).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    copy = cache_dir() / "rows" / f"{path.name}-{name}-{stat.st_size}-{stat.st_mtime_ns}.jsonl"
    if not copy.is_file():
        write_jsonl(copy, rows())
        for older in copy.parent.glob(f"*-{name}-*.jsonl"):
            if older != copy:
                older.unlink(missing_ok=True)
    return copy


def _json_rows(path: Path, on_bad: OnBad | None) -> Iterator[tuple[str, Any]]:
    """The rows of JSON lines, or of a JSON list."""
    if _is_document(path):
        yield from _document_rows(path)
        return
    for number, value in json_lines(path, on_bad=on_bad):
        yield f"{path}:row {number}", value


def _is_document(path: Path) -> bool:
    """Whether a file is one JSON value, a list or an object with a list, rather than one value a line."""
    try:
        with open_bytes(path) as handle:
            head = handle.read(CHUNK_CHARS).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    if head.startswith(b"["):
        return True
    if not head.startswith(b"{") or "json" not in [suffix.strip(".").lower() for suffix in path.suffixes]:
        return False
    try:
        first = json.loads(head.split(b"\n", 1)[0])
    except ValueError:
        return True
    return any(isinstance(first.get(key), list) for key in WRAPPING_KEYS) and "messages" not in first


def _document_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The items of a JSON list, which may be the value of one key of an object."""

    def refuse(line: str) -> NoReturn:
        raise DataError(line)

    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="replace") as handle:
        head = handle.read(CHUNK_CHARS)
        if head.lstrip().startswith("["):
            rest = head.lstrip()[1:]
            yield from list_items(path, handle, rest, refuse, max_item_chars=1 << 30)
            return
        value = _whole_object(path, head, handle)
    key = next((key for key in WRAPPING_KEYS if isinstance(value.get(key), list)), None)
    if key is None:
        raise DataError(
            f"{path}: a JSON object with {', '.join(map(str, value))[:80]}; write one row a line, or a list of rows"
        )
    for number, item in enumerate(value[key], 1):
        if message := half_character(json.dumps(item), item):
            raise DataError(f"{path}:item {number}: {message}")
        yield f"{path}:item {number}", item


def _whole_object(path: Path, head: str, handle: IO[str]) -> dict[str, Any]:
    try:
        value = json.loads(head + handle.read())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); write one row a line, or a list of rows") from error
    return dict(value)
