"""Whether a run trains on rows that it is measured on, before it begins.

Two rows are the same if their clips (files, or the same segments of them) have the same content and their questions the
same text, whatever their ids and file names are. Only rows whose question is also asked in a measurement are compared
by their clips, first by file size, then by content, so that a large training set is read once and few of its files are.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from earwise.answers.option_texts import normalise
from earwise.errors import DataError
from earwise.types import Example

Notify = Callable[[str], None]
NUM_NAMED_ROWS = 3
"""Number of common rows that a message names."""


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """Rows that a run is measured on.

    Attributes:
        name: What a message calls them.
        rows: The rows.
    """

    name: str
    rows: Sequence[Example]


def check_overlap(
    trained: Sequence[Sequence[Example]], measured: Sequence[MeasuredRows], *, stops: bool, notify: Notify
) -> None:
    """Look for rows that are both trained and measured on.

    Args:
        trained: Rows of each training manifest.
        measured: Rows of each measurement.
        stops: Whether such rows end the run; otherwise they are reported.
        notify: Receives a report where the run goes on.
    Raises:
        DataError: naming measurement, count and first rows.
    """
    if not measured or not trained:
        return
    contents = _Contents()
    overlap = _find(trained, measured, contents)
    for source, pairs in zip(measured, overlap, strict=True):
        if not pairs:
            continue
        rows = ", ".join(f"{row!r} is {other!r}" for row, other in list(pairs.items())[:NUM_NAMED_ROWS])
        message = (
            f"{source.name}: {len(pairs)} of {len(source.rows)} rows to measure on are trained on too "
            f"(same clips, same question; measured row {rows})"
        )
        if stops:
            raise DataError(
                f"{message}; separate them with `where: {{split: ...}}`, or set on_overlap: warn if that is wanted"
            )
        notify(f"warning: {message}")


def _find(
    trained: Sequence[Sequence[Example]], measured: Sequence[MeasuredRows], contents: "_Contents"
) -> list[dict[str, str]]:
    """For each measurement: id of a measured row -> id of a row to train on that is the same."""
    by_question: dict[str, list[tuple[int, Example]]] = {}
    for number, source in enumerate(measured):
        for row in source.rows:
            by_question.setdefault(normalise(row.question), []).append((number, row))
    sizes = {contents.sizes(row) for rows in by_question.values() for _, row in rows}
    overlap: list[dict[str, str]] = [{} for _ in measured]
    for row in _distinct_rows(trained):
        candidates = by_question.get(normalise(row.question))
        if candidates is None or contents.sizes(row) not in sizes:
            continue
        for number, other in candidates:
            if contents.equal(row, other):
                overlap[number].setdefault(other.id, row.id)
    return overlap


def _distinct_rows(trained: Sequence[Sequence[Example]]) -> Iterator[Example]:
    """The rows of all training manifests; a manifest that several stages read, with equal rows, is read once."""
    looked_at: set[tuple[Path, str]] = set()
    for rows in trained:
        for row in rows:
            key = (row.root, row.id)
            if key not in looked_at:
                looked_at.add(key)
                yield row


@dataclass(slots=True)
class _Contents:
    """Sizes and hashes of audio files, each read at most once."""

    _sizes: dict[Path, int] = field(default_factory=dict)
    _digests: dict[Path, bytes] = field(default_factory=dict)

    def sizes(self, row: Example) -> tuple[int, ...]:
        """Sizes of a row's clips in bytes; -1 for a file that is not there."""
        return tuple(self._size(clip.path) for clip in row.clips)

    def equal(self, first: Example, second: Example) -> bool:
        """Whether two rows have clips of the same content, in the same order; rows without clips are equal."""
        if self.sizes(first) != self.sizes(second):
            return False
        return all(
            (clip.start, clip.end) == (other.start, other.end)
            and (clip.path == other.path or self._digest(clip.path) == self._digest(other.path))
            for clip, other in zip(first.clips, second.clips, strict=True)
        )

    def _size(self, path: Path) -> int:
        if path not in self._sizes:
            try:
                self._sizes[path] = path.stat().st_size
            except OSError:
                self._sizes[path] = -1
        return self._sizes[path]

    def _digest(self, path: Path) -> bytes:
        if path not in self._digests:
            try:
                with path.open("rb") as handle:
                    self._digests[path] = hashlib.file_digest(handle, "sha256").digest()
            except OSError:
                self._digests[path] = str(path).encode()
        return self._digests[path]
