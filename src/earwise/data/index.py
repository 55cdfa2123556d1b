"""The rows of a manifest through its index: a few numbers per row, so that millions of rows fit into memory.

Sits between `data/manifest.py` and training. `index_build.py` reads a manifest and makes its index; an `Example` is
parsed from the file only when it is drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from earwise.data.index_build import (
    NO_CLIPS_HASH,
    Index,
    Notify,
    clips_hash,
    decode_line,
    line_at,
    open_index,
    row_number,
)
from earwise.data.index_build import (
    WHERE_FIELDS as WHERE_FIELDS,
)
from earwise.data.manifest import from_line
from earwise.errors import DataError
from earwise.types import Example


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
        self,
        conditions: Mapping[Any, str | Sequence[str]],
        *,
        require_answer: bool = False,
        require_preference: bool = False,
    ) -> "ManifestRows":
        """Filter the rows by their fields.

        Args:
            conditions: Name of one of `WHERE_FIELDS` -> value that the field must have, or several of them.
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
            wanted = {value} if isinstance(value, str) else set(value)
            codes = [code for code, name in enumerate(self._index.values[field]) if name in wanted]
            mask = mask & np.isin(self._index.codes[field, self._row_numbers], codes)
        return ManifestRows(self._index, self._row_numbers[mask])

    def take(self, positions: Sequence[int]) -> "ManifestRows":
        """The rows at `positions` of this sequence, counted from 0."""
        return ManifestRows(self._index, self._row_numbers[np.asarray(positions, np.int64)])

    def without_reasoning(self) -> "ManifestRows":
        """The rows whose field `reasoning` is empty."""
        return ManifestRows(self._index, self._row_numbers[~self._index.has_reasoning[self._row_numbers]])

    def without_sound(self) -> "ManifestRows":
        """The rows that have no clip and do not declare that this is meant."""
        return ManifestRows(self._index, self._row_numbers[self._index.is_deaf[self._row_numbers]])

    def with_sound(self) -> "ManifestRows":
        """The rows that have a clip."""
        has_clip = self._index.clip_hashes[self._row_numbers] != np.uint64(NO_CLIPS_HASH)
        return ManifestRows(self._index, self._row_numbers[has_clip])

    def with_history(self) -> "ManifestRows":
        """The rows in which the assistant speaks before the reply that is the answer."""
        return ManifestRows(self._index, self._row_numbers[self._index.has_history[self._row_numbers]])

    def line_number(self, position: int) -> int:
        """Number of the line on which a row stands, counted from 1; of its item where the manifest is a list."""
        return row_number(self._index.lines, int(self._index.offsets[self._row_numbers[position]]))

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


def open_rows(
    path: Path, *, workers: int | None = None, check_files: bool = True, notify: Notify = lambda _: None
) -> ManifestRows:
    """All rows of a manifest; see `open_index`."""
    index = open_index(path, workers=workers, check_files=check_files, notify=notify)
    return ManifestRows(index, np.arange(len(index.offsets)))


def _indexed_example(index: Index, row: int) -> Example:
    """Parse row number `row` of an indexed manifest, and check that it is still the row that was indexed."""
    message = (
        f"{index.path}: row {row + 1} is no longer what was read at the start; start again, and do not change the "
        "manifest during a run"
    )
    offset = int(index.offsets[row])
    try:
        line = decode_line(line_at(index.lines, offset), offset)
        example = from_line(line, root=index.path.parent, location=f"{index.path}: byte {offset}")
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"{message} ({error})") from error
    if clips_hash(example) != int(index.clip_hashes[row]):
        raise DataError(message)
    return example
