"""What the readers of other programs' data sets yield, and what they are told.

Below all readers in this folder. A reader is a function `read(location, store)` that yields `ForeignRow`s one by one;
it resolves paths and stores clips, and leaves the meaning of columns to `native_rows.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earwise.data.interchange.clip_store import ClipStore


@dataclass(frozen=True, slots=True)
class Clip:
    """The audio of a row: a file, or a part of one."""

    path: Path
    """File, absolute or relative to the working folder."""
    start: float | None = None
    """First second of the part that is meant; None for the beginning of the file."""
    end: float | None = None
    """Second at which the part ends; None for the end of the file."""


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """One row of another program's data set."""

    location: str
    """File and row, for error messages."""
    values: Mapping[str, Any]
    """Column -> value. Audio that the reader recognises is a `Clip`, or a list of them; a path that it does not
    recognise stays text."""
    root: Path
    """Folder that relative paths of the row start from."""


@dataclass(frozen=True, slots=True)
class DatasetLocation:
    """The name of a data set, taken apart."""

    kind: str
    """Name of its form, a key of `detection.READERS`."""
    path: Path
    """File or folder; for a data set on a hub `Path(ORGANISATION/NAME)`."""
    split: str | None = None
    """Split to read; None for all."""
    config: str | None = None
    """Configuration (subset) of a data set on a hub."""
    revision: str | None = None
    """Commit, tag or branch of a data set on a hub."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of a manifest row -> column of the data set."""
    prompt: str | None = None
    """Question of rows that have none."""


def toolkit_path(folder: Path, path: str) -> Path:
    """A file that a speech toolkit names: from the data folder, or else from the working folder as its programs do."""
    beside = folder / path
    return Path(path) if not beside.is_file() and Path(path).is_file() else beside


Reader = Callable[[DatasetLocation, ClipStore], Iterator[ForeignRow]]
