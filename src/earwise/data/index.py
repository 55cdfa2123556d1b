"""Index of a manifest: a few numbers per row, so that manifests of millions of rows fit into memory.

Sits between `data/manifest.py` and training. The first time a manifest is opened, every row is parsed and checked (a
large manifest on several processes) and reduced to 47 bytes: its byte offset in the file, a hash of its audio paths, a
hash of its group, and the fields that a recipe's `where` filter compares. An `Example` is parsed from the file only
when it is drawn. The index of a large manifest is cached under `EARWISE_HOME` and reused while the manifest's size and
modification time stay the same. Audio files are checked for existence when the index is built and not again.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from earwise.data.manifest import from_line
from earwise.data.process_pool import ordered_map
from earwise.errors import DataError
from earwise.files import atomic_write, cache_dir
from earwise.types import Audio, Example

WHERE_FIELDS = ("task", "category", "source", "split", "language")
PART_BYTES = 8 << 20  # about 12,000 rows; a larger manifest is read by several processes and its index is cached
VERSION = 2  # incremented whenever the content of the cached file changes
BOM = b"\xef\xbb\xbf"

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Index:
    """The rows of a manifest as arrays of shape `(rows,)`, in file order."""

    path: Path
    offsets: NDArray[np.int64]
    """Byte offset at which each row's line starts."""
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


STORED_NAMES = {
    "offsets": "offsets",
    "clip_hashes": "sounds",
    "group_hashes": "groups",
    "codes": "codes",
    "has_answer": "answered",
    "has_reasoning": "reasoned",
    "has_preference": "preferred",
}
"""Attribute of `Index` -> name of its array in the cached file (`values` is stored as JSON under `names`)."""


class ManifestRows(Sequence[Example]):
    """Rows of an indexed manifest; each Example is parsed when it is accessed.

    Args:
        index: Index of the manifest.
        row_numbers: Rows that this sequence holds, counted from 0 `(n,)`.
    """

    def __init__(self, index: Index, row_numbers: NDArray[np.int64]) -> None:
        self._index, self._row_numbers = index, row_numbers

    def __len__(self) -> int:
        return len(self._row_numbers)

    @overload
    def __getitem__(self, position: int) -> Example: ...
    @overload
    def __getitem__(self, position: slice) -> "ManifestRows": ...
    def __getitem__(self, position: int | slice) -> "Example | ManifestRows":
        """One Example, or the rows of a slice.

        Raises:
            DataError: if the manifest has changed since it was indexed.
        """
        if isinstance(position, slice):
            return ManifestRows(self._index, self._row_numbers[position])
        return _indexed_example(self._index, int(self._row_numbers[position]))

    def select(
        self, conditions: Mapping[Any, str], *, require_answer: bool = False, require_preference: bool = False
    ) -> "ManifestRows":
        """Filter the rows by their fields.

        Args:
            conditions: Name of one of `WHERE_FIELDS` -> value that the field must have.
            require_answer: Keep only rows with an answer.
            require_preference: Keep only rows with `rejected` completions and `chosen` ones or an answer.
        """
        mask = np.ones(len(self), np.bool_)
        if require_answer:
            mask = mask & self._index.has_answer[self._row_numbers]
        if require_preference:
            mask = mask & self._index.has_preference[self._row_numbers]
        for name, value in conditions.items():
            field = WHERE_FIELDS.index(name)
            values = self._index.values[field]
            code = values.index(value) if value in values else -1
            mask = mask & (self._index.codes[field, self._row_numbers] == code)
        return ManifestRows(self._index, self._row_numbers[mask])

    def take(self, positions: Sequence[int]) -> "ManifestRows":
        """The rows at `positions` of this sequence, counted from 0."""
        return ManifestRows(self._index, self._row_numbers[np.asarray(positions, np.int64)])

    def without_reasoning(self) -> "ManifestRows":
        """The rows whose field `reasoning` is empty."""
        return ManifestRows(self._index, self._row_numbers[~self._index.has_reasoning[self._row_numbers]])

    def group_by_clips(self) -> "ClipGroups":
        """Group the rows that ask about the same clips; groups are ordered by their first row."""
        clip_hashes = self._index.clip_hashes[self._row_numbers]
        _, first, member = np.unique(clip_hashes, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        group = rank[member]
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(len(first) + 1))
        return ClipGroups(ManifestRows(self._index, self._row_numbers[order]), starts)


class ClipGroups(Sequence[tuple[Example, ...]]):
    """Groups of rows that ask about the same clips.

    Args:
        rows: Rows of all groups, the rows of one group next to each other.
        starts: Position of each group's first row in `rows`, then `len(rows)` `(groups + 1,)`.
    """

    def __init__(self, rows: ManifestRows, starts: NDArray[np.int64]) -> None:
        self._rows, self._starts = rows, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, position: int) -> tuple[Example, ...]: ...
    @overload
    def __getitem__(self, position: slice) -> list[tuple[Example, ...]]: ...
    def __getitem__(self, position: int | slice) -> tuple[Example, ...] | list[tuple[Example, ...]]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        group = range(len(self))[position]
        return tuple(self._rows[int(self._starts[group]) : int(self._starts[group + 1])])


def open_rows(path: Path, *, workers: int | None = None, notify: Notify = lambda _: None) -> ManifestRows:
    """All rows of a manifest; see `open_index`."""
    index = open_index(path, workers=workers, notify=notify)
    return ManifestRows(index, np.arange(len(index.offsets)))


def open_index(
    path: Path, *, workers: int | None = None, part_bytes: int = PART_BYTES, notify: Notify = lambda _: None
) -> Index:
    """Load the cached index of a manifest, or build the index by reading the whole manifest.

    Args:
        path: Manifest (JSON lines, see `data/manifest.py`).
        workers: Number of processes that read a large manifest; None for one per core.
        part_bytes: Size of the parts in which the manifest is read. A manifest of more than one part is read on several
            processes and its index is cached.
        notify: Callback that receives progress messages.
    Raises:
        DataError: under the conditions of `manifest.read`: an unreadable or empty manifest, the first invalid row, a
            missing audio file, or an id that occurs twice.
    """
    try:
        stat = path.stat()
        stamp = np.array([VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
        cache_path = index_path(path)
        index = _load_cached(path, cache_path, stamp)
        if index is None:
            index = _build(path, range(0, stat.st_size, part_bytes), workers, notify)
            if stat.st_size > part_bytes:
                _save(index, cache_path, stamp, notify)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    return index


def index_path(path: Path) -> Path:
    """File under which the index of the manifest `path` is cached."""
    return cache_dir() / "index" / f"{path.stem}-{hash64(str(path.resolve())):016x}.npz"


def hash64(text: str) -> int:
    """64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def clips_hash(example: Example) -> int:
    """64-bit hash of the audio paths of a row, in the order in which the row names them."""
    return _paths_hash(tuple(part.path for turn in example.turns for part in turn.parts if isinstance(part, Audio)))


@lru_cache(maxsize=1024)  # questions about one clip are usually next to each other in a manifest
def _paths_hash(paths: tuple[str, ...]) -> int:
    return hash64("\0".join(str(PurePath(path)) for path in paths))


# Building the index ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """The index of a part of the manifest, or the offset of the first invalid line in it."""

    columns: tuple[NDArray[Any], ...] = ()
    """Offsets, clip hashes, group hashes, codes, has_answer, has_reasoning, has_preference, hashes of the ids."""
    values: tuple[tuple[str, ...], ...] = ()
    """Distinct values in this part of each of `WHERE_FIELDS`; the part's codes are positions in these."""
    invalid_offset: int | None = None


def _build(path: Path, starts: range, workers: int | None, notify: Notify) -> Index:
    """Read the parts of a manifest that begin at `starts` and join them to one index."""
    parts: list[_Part] = []
    for part in ordered_map(partial(_read_part, path, starts.step), starts, workers=workers, chunk=1):
        if part.invalid_offset is not None:
            _raise_row_error(path, part.invalid_offset)
        parts.append(part)
        if len(starts) > 1 and len(parts) % 8 == 0:
            notify(f"reading {path.name} for the first time: {len(parts) / len(starts):.0%}")
    columns = [np.concatenate(column, axis=-1) for column in zip(*(part.columns for part in parts), strict=True)]
    if not columns or not len(columns[0]):
        raise DataError(f"{path}: holds no rows; write at least one")
    offsets, clip_hashes, group_hashes, _, has_answer, has_reasoning, has_preference, id_hashes = columns
    _check_ids(path, offsets, id_hashes)
    values: list[dict[str, int]] = [{} for _ in WHERE_FIELDS]
    codes = []
    for part in parts:
        tables = [
            np.array([code_of.setdefault(value, len(code_of)) for value in part_values], np.int32)
            for code_of, part_values in zip(values, part.values, strict=True)
        ]
        codes.append(np.stack([table[column] for table, column in zip(tables, part.columns[3], strict=True)]))
    return Index(
        path,
        offsets,
        clip_hashes,
        group_hashes,
        np.concatenate(codes, axis=1),
        tuple(map(tuple, values)),
        has_answer,
        has_reasoning,
        has_preference,
    )


def _read_part(path: Path, size: int, start: int) -> _Part:
    """Index the lines of a manifest that start in the bytes `[start, start + size)`."""
    offsets, hashes, has_answer, has_reasoning, has_preference = [], [], [], [], []
    codes: list[list[int]] = [[] for _ in WHERE_FIELDS]
    values: list[dict[str, int]] = [{} for _ in WHERE_FIELDS]
    existing_files = set[str]()
    for offset, line in _lines(path, start, start + size):
        try:
            example = from_line(_decode(line, offset), root=path.parent, location="", existing_files=existing_files)
        except (DataError, UnicodeDecodeError):
            return _Part(invalid_offset=offset)
        offsets.append(offset)
        hashes.append((clips_hash(example), hash64(example.group) if example.group else 0, hash64(example.id)))
        has_answer.append(bool(example.answer))
        has_reasoning.append(bool(example.reasoning))
        has_preference.append(bool(example.rejected) and bool(example.chosen or example.answer))
        for field, code_of, column in zip(WHERE_FIELDS, values, codes, strict=True):
            column.append(code_of.setdefault(getattr(example, field), len(code_of)))
    clip_hashes, group_hashes, id_hashes = np.array(hashes, np.uint64).reshape(-1, 3).T
    columns: tuple[NDArray[Any], ...] = (np.array(offsets, np.int64), clip_hashes, group_hashes)
    columns += (np.array(codes, np.int32),)
    columns += tuple(np.array(column, np.bool_) for column in (has_answer, has_reasoning, has_preference))
    columns += (id_hashes,)
    return _Part(columns, tuple(map(tuple, values)))


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


def _decode(line: bytes, offset: int) -> str:
    """The text of the line at `offset`; the first line of a file may begin with a byte order mark."""
    return (line.removeprefix(BOM) if offset == 0 else line).decode("utf-8")


def _raise_row_error(path: Path, offset: int) -> None:
    """Raise the DataError of the invalid line at `offset`, with its row number."""
    location = f"{path}:row {_row_number(path, offset)}"
    with path.open("rb") as handle:
        handle.seek(offset)
        line = handle.readline()
    try:
        from_line(_decode(line, offset), root=path.parent, location=location, existing_files=set())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {offset + error.start}); a manifest is JSON lines"
        ) from error
    raise DataError(f"{location}: the manifest changed while it was read; start again")


def _row_number(path: Path, offset: int) -> int:
    """Number of the line that starts at `offset`, counted from 1."""
    count, remaining = 1, offset
    with path.open("rb") as handle:
        while remaining > 0 and (block := handle.read(min(remaining, 1 << 20))):
            count += block.count(b"\n")
            remaining -= len(block)
    return count


def _check_ids(path: Path, offsets: NDArray[np.int64], id_hashes: NDArray[np.uint64]) -> None:
    """Raise DataError for an id that occurs twice; only rows with equal hashes are parsed and compared."""
    order = np.argsort(id_hashes, kind="stable")
    repeats = np.flatnonzero(id_hashes[order][1:] == id_hashes[order][:-1])
    for second, first in sorted((int(order[place + 1]), int(order[place])) for place in repeats):
        earlier, later = (_read_example(path, int(offsets[row])) for row in (first, second))
        if earlier.id == later.id:
            rows = [_row_number(path, int(offsets[row])) for row in (first, second)]
            raise DataError(f"{path}:row {rows[1]}: id {later.id!r} is taken by row {rows[0]}; ids must differ")


def _read_example(path: Path, offset: int) -> Example:
    """Parse the row whose line starts at `offset`."""
    with path.open("rb") as handle:
        handle.seek(offset)
        line = handle.readline()
    return from_line(_decode(line, offset), root=path.parent, location=f"{path}: byte {offset}")


def _indexed_example(index: Index, row: int) -> Example:
    """Parse row number `row` of an indexed manifest, and check that it is still the row that was indexed."""
    message = (
        f"{index.path}: row {row + 1} is no longer what was read at the start; start again, and do not change the "
        "manifest during a run"
    )
    try:
        example = _read_example(index.path, int(index.offsets[row]))
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"{message} ({error})") from error
    if clips_hash(example) != int(index.clip_hashes[row]):
        raise DataError(message)
    return example


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


def _load_cached(path: Path, cache_path: Path, stamp: NDArray[np.int64]) -> Index | None:
    """The cached index, if the file is intact and was built from the manifest as it is now."""
    try:
        with np.load(cache_path, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            values = tuple(map(tuple, json.loads(stored["names"].tobytes())))
            return Index(path, values=values, **{name: stored[key] for name, key in STORED_NAMES.items()})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
