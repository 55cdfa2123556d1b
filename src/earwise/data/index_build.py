"""Builds the index of a manifest, or loads it from the cache.

Every row is parsed and checked, a large manifest on several processes, and reduced to 49 bytes: its byte offset in the
file, a hash of its audio paths, a hash of its group, a few flags, and the fields that a recipe's `where` filter
compares. The index of a large manifest is cached under `EARWISE_HOME` and reused while the manifest's size and
modification time stay the same. Audio files are checked for existence when the index is built and not again. A manifest
that is not JSON lines is copied to a file of lines first (`readers/row_files.py`).
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earwise import progress
from earwise.data.formats.convert import OWN, recognise
from earwise.data.manifest import (
    check_audio_files,
    format_line,
    from_line,
    from_row,
    iterate,
    row_of_line,
    to_row,
)
from earwise.data.process_pool import ordered_map
from earwise.data.readers.row_files import is_plain_lines, line_copy
from earwise.data.readers.text_lines import not_utf8, refuse_utf16
from earwise.errors import DataError
from earwise.files import atomic_write, cache_dir
from earwise.prompts import prompt_part
from earwise.types import Audio, AudioClip, Example

WHERE_FIELDS = ("task", "category", "source", "split", "language", "field")
PART_BYTES = 8 << 20  # about 12,000 rows; a larger manifest is read by several processes and its index is cached
VERSION = 4  # incremented whenever the content of the cached file changes
BOM = b"\xef\xbb\xbf"
NUM_FLAGS = 5
"""Number of flags of a row, see `_flags`."""

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Index:
    """The rows of a manifest as arrays of shape `(rows,)`, in file order."""

    path: Path
    lines: Path
    """File with one row a line: the manifest itself, or its copy under `EARWISE_HOME`."""
    offsets: NDArray[np.int64]
    """Byte offset at which each row's line starts in `lines`."""
    clip_hashes: NDArray[np.uint64]
    """Hash of the row's audio paths; equal for rows that ask about the same clips."""
    group_hashes: NDArray[np.uint64]
    """Hash of the field `group`; 0 for a row without a group."""
    codes: NDArray[np.int32]
    """`(fields, rows)`: position in `values` of the row's value of each of `WHERE_FIELDS`."""
    values: tuple[tuple[str, ...], ...]
    """Distinct values of each of `WHERE_FIELDS`."""
    has_answer: NDArray[np.bool_]
    has_reasoning: NDArray[np.bool_]
    has_preference: NDArray[np.bool_]
    """True for a row with `rejected` completions and with something that is preferred to them (`chosen` or an answer).
    """
    is_deaf: NDArray[np.bool_]
    """True for a row that has no clip and does not declare that this is meant."""
    has_history: NDArray[np.bool_]
    """True for a row in which the assistant speaks before the reply that is the answer."""


STORED_NAMES = {
    "offsets": "offsets",
    "clip_hashes": "sounds",
    "group_hashes": "groups",
    "codes": "codes",
    "has_answer": "answered",
    "has_reasoning": "reasoned",
    "has_preference": "preferred",
    "is_deaf": "deaf",
    "has_history": "history",
}
"""Attribute of `Index` -> name of its array in the cached file (`values` is stored as JSON under `names`)."""


def open_index(
    path: Path,
    *,
    workers: int | None = None,
    part_bytes: int = PART_BYTES,
    check_files: bool = True,
    notify: Notify = lambda _: None,
) -> Index:
    """Load the cached index of a manifest, or build the index by reading the whole manifest.

    Args:
        path: Manifest (see `data/manifest.py`).
        workers: Number of processes that read a large manifest; None for one per core.
        part_bytes: Size of the parts in which the manifest is read. A manifest of more than one part is read on several
            processes and its index is cached.
        check_files: Whether to require that every audio file exists.
        notify: Callback that receives progress messages, and a line about rows of other formats.
    Raises:
        DataError: under the conditions of `manifest.read`: an unreadable or empty manifest, the first invalid row, a
            missing audio file, or an id that occurs twice. Rows without a clip are not refused here.
    """
    try:
        lines = path if is_plain_lines(path) else line_copy(path, partial(_standard_rows, path, notify))
        stat = lines.stat()
        stamp = np.array([VERSION, stat.st_size, stat.st_mtime_ns, check_files], np.int64)
        cache_path = index_path(path)
        index = _load_cached(path, lines, cache_path, stamp)
        if index is None:
            source = _LineFile(path, lines, check_files)
            index = _build(source, range(0, stat.st_size, part_bytes), workers, notify)
            if stat.st_size > part_bytes:
                _save(index, cache_path, stamp, notify)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    return index


def _standard_rows(path: Path, notify: Notify) -> Iterator[dict[str, Any]]:
    """The rows of a manifest that is not JSON lines, in earwise's own format."""
    for example in iterate(path, require_audio=False, notify=notify):
        yield to_row(example)


def index_path(path: Path) -> Path:
    """File under which the index of the manifest `path` is cached."""
    return cache_dir() / "index" / f"{path.stem}-{hash64(str(path.resolve())):016x}.npz"


def hash64(text: str) -> int:
    """64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def clips_hash(example: Example) -> int:
    """64-bit hash of the audio files of a row and their segments, in the order in which the row names them."""
    return _parts_hash(example.audio_parts)


@lru_cache(maxsize=1024)  # questions about one clip are usually next to each other in a manifest
def _parts_hash(parts: tuple[Audio, ...]) -> int:
    return hash64("\0".join(str(AudioClip(Path(part.path), part.start or 0.0, part.end)) for part in parts))


NO_CLIPS_HASH = _parts_hash(())
"""`clips_hash` of a row without clips."""

# Building the index ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LineFile:
    """A manifest as a file with one row a line.

    Attributes:
        path: The manifest, which error messages name and whose folder relative audio paths start from.
        lines: The file with one row a line.
        check_files: Whether every audio file must exist.
    """

    path: Path
    lines: Path
    check_files: bool

    def example(self, line: bytes, offset: int, location: str, existing_files: set[str]) -> Example:
        """The row of a line; `existing_files` are the audio paths that are known to exist."""
        return from_line(
            decode_line(line, offset),
            root=self.path.parent,
            location=location,
            existing_files=existing_files if self.check_files else None,
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """The index of a part of the manifest, or the offset of the first invalid line in it."""

    columns: tuple[NDArray[Any], ...] = ()
    """Offsets, clip hashes, group hashes, codes, the five flags of a row in the order of `Index`, hashes of the ids."""
    values: tuple[tuple[str, ...], ...] = ()
    """Distinct values in this part of each of `WHERE_FIELDS`; the part's codes are positions in these."""
    formats: Mapping[str, int] = field(default_factory=dict)
    """Name of a row format -> number of rows."""
    invalid_offset: int | None = None


def _build(source: _LineFile, starts: range, workers: int | None, notify: Notify) -> Index:
    """Read the parts of a manifest that begin at `starts` and join them to one index."""
    path = source.path
    parts: list[_Part] = []
    results = ordered_map(partial(_read_part, source, starts.step), starts, workers=workers, chunk=1)
    for part in progress.track(results, f"parts of {path.name} read", len(starts)):
        if part.invalid_offset is not None:
            _raise_row_error(source, part.invalid_offset)
        parts.append(part)
    columns = [np.concatenate(column, axis=-1) for column in zip(*(part.columns for part in parts), strict=True)]
    if not columns or not len(columns[0]):
        raise DataError(f"{path}: holds no rows; write at least one")
    offsets, clip_hashes, group_hashes, _, *flags, id_hashes = columns
    _check_ids(source, offsets, id_hashes)
    values: list[dict[str, int]] = [{} for _ in WHERE_FIELDS]
    codes = []
    for part in parts:
        tables = [
            np.array([code_of.setdefault(value, len(code_of)) for value in part_values], np.int32)
            for code_of, part_values in zip(values, part.values, strict=True)
        ]
        codes.append(np.stack([table[column] for table, column in zip(tables, part.columns[3], strict=True)]))
    if line := format_line(path, sum((Counter(part.formats) for part in parts), Counter[str]())):
        notify(line)
    all_codes, all_values = np.concatenate(codes, axis=1), tuple(map(tuple, values))
    return Index(path, source.lines, offsets, clip_hashes, group_hashes, all_codes, all_values, *flags)


def _read_part(source: _LineFile, size: int, start: int) -> _Part:
    """Index the lines of a manifest that start in the bytes `[start, start + size)`."""
    offsets, hashes = [], []
    flags: list[tuple[bool, ...]] = []
    codes: list[list[int]] = [[] for _ in WHERE_FIELDS]
    values: list[dict[str, int]] = [{} for _ in WHERE_FIELDS]
    formats = Counter[str]()
    existing_files = set[str]()
    for offset, line in _lines(source.lines, start, start + size):
        try:
            row = row_of_line(decode_line(line, offset), "")
            example = from_row(row, root=source.path.parent, location="")
            if source.check_files:
                check_audio_files(example, existing_files, "")
        except (DataError, UnicodeDecodeError):
            return _Part(invalid_offset=offset)
        formats[recognise(row) or OWN] += 1
        offsets.append(offset)
        hashes.append((clips_hash(example), hash64(example.group) if example.group else 0, hash64(example.id)))
        flags.append(_flags(example))
        for name, code_of, column in zip(WHERE_FIELDS, values, codes, strict=True):
            column.append(code_of.setdefault(getattr(example, name), len(code_of)))
    clip_hashes, group_hashes, id_hashes = np.array(hashes, np.uint64).reshape(-1, 3).T
    columns: tuple[NDArray[Any], ...] = (np.array(offsets, np.int64), clip_hashes, group_hashes)
    columns += (np.array(codes, np.int32),)
    columns += tuple(np.array(flags, np.bool_).reshape(-1, NUM_FLAGS).T)
    columns += (id_hashes,)
    return _Part(columns, tuple(map(tuple, values)), formats)


def _flags(example: Example) -> tuple[bool, ...]:
    """The flags of a row, in the order of `Index`."""
    has_audio = any(isinstance(part, Audio) for turn in example.turns for part in turn.parts)
    return (
        bool(example.answer),
        bool(example.reasoning),
        bool(example.rejected) and bool(example.chosen or example.answer),
        not has_audio and not example.text_only,
        any(turn.role == "assistant" for turn in prompt_part(example.turns)),
    )


def _lines(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every line that is not blank and starts in `[start, end)`."""
    with path.open("rb") as handle:
        offset = start
        if start:
            handle.seek(start - 1)
            offset += len(handle.readline()) - 1
        while offset < end and (line := handle.readline()):
            if line.strip():
                yield offset, line
            offset += len(line)


def decode_line(line: bytes, offset: int) -> str:
    """The text of the line at `offset`; the first line of a file may begin with a byte order mark."""
    return (line.removeprefix(BOM) if offset == 0 else line).decode("utf-8")


def _raise_row_error(source: _LineFile, offset: int) -> None:
    """Raise the DataError of the invalid line at `offset`, with its row number."""
    number = row_number(source.lines, offset)
    location = f"{source.path}:row {number}"
    with source.lines.open("rb") as handle:
        handle.seek(offset)
        line = handle.readline()
    if offset == 0:
        refuse_utf16(source.path, line)
    try:
        source.example(line, offset, location, set())
    except UnicodeDecodeError as error:
        raise not_utf8(source.path, number, error) from error
    raise DataError(f"{location}: the manifest changed while it was read; start again")


def row_number(path: Path, offset: int) -> int:
    """Number of the line that starts at `offset`, counted from 1."""
    count, remaining = 1, offset
    with path.open("rb") as handle:
        while remaining > 0 and (block := handle.read(min(remaining, 1 << 20))):
            count += block.count(b"\n")
            remaining -= len(block)
    return count


def _check_ids(source: _LineFile, offsets: NDArray[np.int64], id_hashes: NDArray[np.uint64]) -> None:
    """Raise DataError for an id that occurs twice; only rows with equal hashes are parsed and compared.

    Rows that have no id of their own get one from their content, so equal rows have equal ids; they are not refused.
    """
    order = np.argsort(id_hashes, kind="stable")
    repeats = np.flatnonzero(id_hashes[order][1:] == id_hashes[order][:-1])
    for second, first in sorted((int(order[place + 1]), int(order[place])) for place in repeats):
        earlier, later = (
            row_of_line(decode_line(line_at(source.lines, int(offsets[row])), int(offsets[row])), "")
            for row in (first, second)
        )
        if earlier.get("id") == later.get("id") and later.get("id") is not None:
            rows = [row_number(source.lines, int(offsets[row])) for row in (first, second)]
            raise DataError(
                f"{source.path}:row {rows[1]}: id {str(later['id'])!r} is taken by row {rows[0]}; ids must differ"
            )


def line_at(path: Path, offset: int) -> bytes:
    """The line that starts at `offset`."""
    with path.open("rb") as handle:
        handle.seek(offset)
        return handle.readline()


# Caching the index ----------------------------------------------------------------------------------------------------


def _save(index: Index, cache_path: Path, stamp: NDArray[np.int64], notify: Notify) -> None:
    """Write the index to the cache; if that fails, the manifest is only read again at the next start."""
    values = np.frombuffer(json.dumps(index.values).encode(), np.uint8)
    arrays = {stored: getattr(index, attribute) for attribute, stored in STORED_NAMES.items()}
    try:
        with atomic_write(cache_path, "wb") as handle:
            np.savez(handle, stamp=stamp, names=values, **arrays)
    except (DataError, OSError) as error:
        notify(f"the index of {index.path.name} is not kept: {error}")


def _load_cached(path: Path, lines: Path, cache_path: Path, stamp: NDArray[np.int64]) -> Index | None:
    """The cached index, if the file is intact and was built from the manifest as it is now."""
    try:
        with np.load(cache_path, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            values = tuple(map(tuple, json.loads(stored["names"].tobytes())))
            return Index(path, lines, values=values, **{name: stored[key] for name, key in STORED_NAMES.items()})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
