"""A manifest of any size as a few numbers a row: read once, kept beside the caches, opened again at once.

Between `data/manifest.py` and training. Every row is parsed and checked once (on several processes where the manifest
is large); what stays is its place in the file, a hash of its sounds and of its group, and the fields that `where` asks
for: 47 bytes. An `Example` is made when a row is drawn. The index of a large manifest is kept under `EARWISE_HOME` and
holds as long as the manifest's size and time of change do; missing files are looked for when it is made, not again.
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
from earwise.files import home, replacing
from earwise.types import Audio, Example

WHERE_FIELDS = ("task", "category", "source", "split", "language")
PART_BYTES = 8 << 20  # some 12,000 rows; a larger manifest is read by several processes, and its index is kept
VERSION = 2  # counted up whenever what is kept changes
BOM = b"\xef\xbb\xbf"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Index:
    """A manifest's rows as arrays `(rows,)`, in the order of the file."""

    path: Path
    offsets: NDArray[np.int64]
    """Where each row's line starts, bytes."""
    sounds: NDArray[np.uint64]
    """Hash of the row's audio paths: equal for rows that ask about the same sounds."""
    groups: NDArray[np.uint64]
    """Hash of `group`; 0 for none."""
    codes: NDArray[np.int32]
    """`(fields, rows)`: the value of each of `WHERE_FIELDS` as a number in `names`."""
    names: tuple[tuple[str, ...], ...]
    """The values of each of `WHERE_FIELDS`."""
    answered: NDArray[np.bool_]
    reasoned: NDArray[np.bool_]
    preferred: NDArray[np.bool_]
    """Whether the row has an answer; a reasoning; something better and something rejected."""


class Rows(Sequence[Example]):
    """Rows of an indexed manifest; each is parsed when it is asked for.

    Args:
        index: The manifest.
        chosen: Row numbers `(n,)`, from 0.
    """

    def __init__(self, index: Index, chosen: NDArray[np.int64]) -> None:
        self._index, self._chosen = index, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> "Rows": ...
    def __getitem__(self, number: int | slice) -> "Example | Rows":
        """One example, or rows.

        Raises:
            DataError: if the manifest is no longer what was indexed.
        """
        if isinstance(number, slice):
            return Rows(self._index, self._chosen[number])
        return _parsed(self._index, int(self._chosen[number]))

    def select(self, where: Mapping[Any, str], *, answered: bool = False, preferred: bool = False) -> "Rows":
        """Rows whose fields have these values; with `answered`, only those that have an answer; with `preferred`,
        only those that hold a preference (`chosen` or an answer, and `rejected`)."""
        keep = np.ones(len(self), np.bool_)
        if answered:
            keep = keep & self._index.answered[self._chosen]
        if preferred:
            keep = keep & self._index.preferred[self._chosen]
        for name, value in where.items():
            field = WHERE_FIELDS.index(name)
            known = self._index.names[field]
            code = known.index(value) if value in known else -1
            keep = keep & (self._index.codes[field, self._chosen] == code)
        return Rows(self._index, self._chosen[keep])

    def take(self, numbers: Sequence[int]) -> "Rows":
        """Rows by their numbers among these, from 0."""
        return Rows(self._index, self._chosen[np.asarray(numbers, np.int64)])

    def without_reasoning(self) -> "Rows":
        """Rows that hold no reasoning."""
        return Rows(self._index, self._chosen[~self._index.reasoned[self._chosen]])

    def units(self) -> "Units":
        """Rows grouped by their sounds, in the order of their first row."""
        _, first, member = np.unique(self._index.sounds[self._chosen], return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        unit = rank[member]
        order = np.argsort(unit, kind="stable")
        return Units(Rows(self._index, self._chosen[order]), np.searchsorted(unit[order], np.arange(len(first) + 1)))


class Units(Sequence[tuple[Example, ...]]):
    """Groups of rows, one after the other.

    Args:
        rows: The rows, those of a group together.
        starts: Where each group starts `(groups + 1,)`, the end last.
    """

    def __init__(self, rows: Rows, starts: NDArray[np.int64]) -> None:
        self._rows, self._starts = rows, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, number: int) -> tuple[Example, ...]: ...
    @overload
    def __getitem__(self, number: slice) -> list[tuple[Example, ...]]: ...
    def __getitem__(self, number: int | slice) -> tuple[Example, ...] | list[tuple[Example, ...]]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        return tuple(self._rows[int(self._starts[place]) : int(self._starts[place + 1])])


def open_rows(path: Path, *, workers: int | None = None, say: Say = lambda _: None) -> Rows:
    """All rows of a manifest; see `open_index`."""
    index = open_index(path, workers=workers, say=say)
    return Rows(index, np.arange(len(index.offsets)))


def open_index(
    path: Path, *, workers: int | None = None, part_bytes: int = PART_BYTES, say: Say = lambda _: None
) -> Index:
    """The index of a manifest: the kept one, or made by reading all of it.

    Args:
        path: JSON lines, as `manifest.read` takes them.
        workers: Processes that read a large manifest; None for one per core.
        part_bytes: Of the manifest, read at a time; a manifest of more parts is large.
        say: Progress of reading.
    Raises:
        DataError: as `manifest.read`: for an unreadable or empty manifest, the first bad row, a missing audio file,
            or an id that stands twice.
    """
    try:
        stat = path.stat()
        stamp = np.array([VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
        at = kept_at(path)
        index = _load(path, at, stamp)
        if index is None:
            index = _build(path, range(0, stat.st_size, part_bytes), workers, say)
            if stat.st_size > part_bytes:
                _keep(index, at, stamp, say)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    return index


def kept_at(path: Path) -> Path:
    """Where the index of a large manifest is kept."""
    return home() / "index" / f"{path.stem}-{hash64(str(path.resolve())):016x}.npz"


def hash64(text: str) -> int:
    """64 bits that name a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def sounds_hash(example: Example) -> int:
    """64 bits that name the sounds of a row, in their order."""
    return _paths_hash(tuple(part.path for turn in example.turns for part in turn.parts if isinstance(part, Audio)))


@lru_cache(maxsize=1024)  # the questions about a clip mostly follow each other
def _paths_hash(paths: tuple[str, ...]) -> int:
    return hash64("\0".join(str(PurePath(path)) for path in paths))


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """The index of some lines, or the place of the first bad one."""

    columns: tuple[NDArray[Any], ...] = ()  # offsets, sounds, groups, codes, answered, reasoned, hashes of the ids
    names: tuple[tuple[str, ...], ...] = ()
    bad: int | None = None


def _build(path: Path, starts: range, workers: int | None, say: Say) -> Index:
    parts: list[_Part] = []
    for part in ordered_map(partial(_read_part, path, starts.step), starts, workers=workers, chunk=1):
        if part.bad is not None:
            _refuse(path, part.bad)
        parts.append(part)
        if len(starts) > 1 and len(parts) % 8 == 0:
            say(f"reading {path.name} for the first time: {len(parts) / len(starts):.0%}")
    columns = [np.concatenate(column, axis=-1) for column in zip(*(part.columns for part in parts), strict=True)]
    if not columns or not len(columns[0]):
        raise DataError(f"{path}: holds no rows; write at least one")
    offsets, sounds, groups, _, answered, reasoned, preferred, ids = columns
    _check_ids(path, offsets, ids)
    names: list[dict[str, int]] = [{} for _ in WHERE_FIELDS]
    codes = []
    for part in parts:
        tables = [
            np.array([known.setdefault(name, len(known)) for name in own], np.int32)
            for known, own in zip(names, part.names, strict=True)
        ]
        codes.append(np.stack([table[own] for table, own in zip(tables, part.columns[3], strict=True)]))
    return Index(
        path, offsets, sounds, groups, np.concatenate(codes, axis=1), tuple(map(tuple, names)), answered, reasoned,
        preferred,
    )  # fmt: skip


def _read_part(path: Path, size: int, start: int) -> _Part:
    """The lines that start in `[start, start + size)`."""
    offsets, numbers, answered, reasoned, preferred = [], [], [], [], []
    codes: list[list[int]] = [[] for _ in WHERE_FIELDS]
    names: list[dict[str, int]] = [{} for _ in WHERE_FIELDS]
    found = set[str]()
    for offset, line in _lines(path, start, start + size):
        try:
            example = from_line(_text(line, offset), root=path.parent, where="", found=found)
        except (DataError, UnicodeDecodeError):
            return _Part(bad=offset)
        offsets.append(offset)
        numbers.append((sounds_hash(example), hash64(example.group) if example.group else 0, hash64(example.id)))
        answered.append(bool(example.answer))
        reasoned.append(bool(example.reasoning))
        preferred.append(bool(example.rejected) and bool(example.chosen or example.answer))
        for field, known, column in zip(WHERE_FIELDS, names, codes, strict=True):
            column.append(known.setdefault(getattr(example, field), len(known)))
    hashes = np.array(numbers, np.uint64).reshape(-1, 3).T
    columns: tuple[NDArray[Any], ...] = (np.array(offsets, np.int64), hashes[0], hashes[1], np.array(codes, np.int32))
    columns += tuple(np.array(column, np.bool_) for column in (answered, reasoned, preferred))
    columns += (hashes[2],)
    return _Part(columns, tuple(map(tuple, names)))


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


def _text(line: bytes, offset: int) -> str:
    return (line.removeprefix(BOM) if offset == 0 else line).decode("utf-8")


def _refuse(path: Path, offset: int) -> None:
    """Say what is wrong with the line at `offset`, and which row it is."""
    where = f"{path}:row {_row_number(path, offset)}"
    with path.open("rb") as handle:
        handle.seek(offset)
        line = handle.readline()
    try:
        from_line(_text(line, offset), root=path.parent, where=where, found=set())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {offset + error.start}); a manifest is JSON lines"
        ) from error
    raise DataError(f"{where}: changed while it was read; start again")


def _row_number(path: Path, offset: int) -> int:
    """The line that starts at `offset`, from 1."""
    count, left = 1, offset
    with path.open("rb") as handle:
        while left > 0 and (block := handle.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def _check_ids(path: Path, offsets: NDArray[np.int64], ids: NDArray[np.uint64]) -> None:
    """Refuse an id that stands twice; rows are compared only where hashes are equal."""
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    for second, first in sorted((int(order[at + 1]), int(order[at])) for at in again):
        one, two = (_example(path, int(offsets[row])) for row in (first, second))
        if one.id == two.id:
            rows = [_row_number(path, int(offsets[row])) for row in (first, second)]
            raise DataError(f"{path}:row {rows[1]}: id {two.id!r} is taken by row {rows[0]}; ids must differ")


def _example(path: Path, offset: int) -> Example:
    with path.open("rb") as handle:
        handle.seek(offset)
        line = handle.readline()
    return from_line(_text(line, offset), root=path.parent, where=f"{path}: byte {offset}")


def _parsed(index: Index, row: int) -> Example:
    changed = f"{index.path}: row {row + 1} is no longer what was read at the start; start again, and leave it alone"
    try:
        example = _example(index.path, int(index.offsets[row]))
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"{changed} ({error})") from error
    if sounds_hash(example) != int(index.sounds[row]):
        raise DataError(changed)
    return example


# Keeping -------------------------------------------------------------------------------------------------------------


def _keep(index: Index, at: Path, stamp: NDArray[np.int64], say: Say) -> None:
    """Write the index; a cache that cannot be written costs the next start its time and nothing else."""
    names = np.frombuffer(json.dumps(index.names).encode(), np.uint8)
    arrays = {name: getattr(index, name) for name in ARRAYS}
    try:
        with replacing(at, "wb") as handle:
            np.savez(handle, stamp=stamp, names=names, **arrays)
    except (DataError, OSError) as error:
        say(f"the index of {index.path.name} is not kept: {error}")


ARRAYS = ("offsets", "sounds", "groups", "codes", "answered", "reasoned", "preferred")


def _load(path: Path, at: Path, stamp: NDArray[np.int64]) -> Index | None:
    """The kept index, if it is whole and of the manifest as it is now."""
    try:
        with np.load(at, allow_pickle=False) as kept:
            if not np.array_equal(kept["stamp"], stamp):
                return None
            names = tuple(map(tuple, json.loads(kept["names"].tobytes())))
            return Index(path, names=names, **{name: kept[name] for name in ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
