"""Manifest rows together with their audio files, for packing into one archive and unpacking elsewhere.

Used by `data/webdataset.py` and `data/parquet.py`. One row is held in memory at a time, so memory does not grow with
the size of the manifest. An audio file keeps the relative path that its row gives it, and is unpacked under that path;
a file outside the manifest's folder, or with a name that is no audio file's, is renamed to its hash under `clips/`.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import BinaryIO

from earwise import progress
from earwise.audio import AUDIO_SUFFIXES, UNKNOWN_SUFFIX, audio_sha256
from earwise.data import manifest
from earwise.data.readers.row_files import count_rows
from earwise.errors import DataError
from earwise.files import atomic_write
from earwise.types import Audio, Example, Turn


@dataclass(frozen=True, slots=True)
class PortableRow:
    """A manifest row whose audio paths stay inside any folder it is unpacked into."""

    number: int
    """Number of the row, counted from 0."""
    example: Example
    """The row, with the paths that its audio files get when they are unpacked."""
    files: tuple[Path, ...]
    """The row's audio files as they are now, in the order of `audio_parts`."""
    size: int
    """Size of all `files` in bytes."""


def portable_rows(path: Path) -> Iterator[PortableRow]:
    """Read the rows of a manifest for packing.

    Raises:
        DataError: for an invalid row or a missing audio file (see `manifest.iterate`).
    """
    new_paths: dict[Path, str] = {}
    examples = manifest.iterate(path, check_files=True, require_audio=False)
    for number, example in enumerate(progress.track(examples, "rows packed", count_rows(path))):
        files = example.audio_paths
        turns = []
        for turn in example.turns:
            parts = (
                _inside_folder(part, example.root, new_paths) if isinstance(part, Audio) else part
                for part in turn.parts
            )
            turns.append(Turn(turn.role, tuple(parts)))
        size = sum(file.stat().st_size for file in files)
        yield PortableRow(number, replace(example, turns=tuple(turns)), files, size)


def audio_parts(example: Example) -> list[Audio]:
    """The audio parts of all turns, in order."""
    return list(example.audio_parts)


def read_row(data: bytes, root: Path, location: str) -> Example:
    """Parse the JSON of a packed row; `location` is the prefix of error messages."""
    try:
        return manifest.from_line(data.decode("utf-8"), root=root, location=location)
    except UnicodeDecodeError as error:
        raise DataError(f"{location}: is not UTF-8 text ({error.reason}); pack it again") from error


def check_name(root: Path, name: str, location: str) -> None:
    """Refuse the path of an audio file that may not be unpacked.

    Only names of audio files are written, and only below `root`: an archive could otherwise leave programs where others
    run them (`.git/hooks/post-checkout`, `conftest.py`).

    Args:
        root: Folder that is unpacked into.
        name: Path of the file, relative to `root`.
        location: Prefix of error messages.
    Raises:
        DataError: if the path leads out of `root`, also by a link that is there, or is not that of an audio file.
    """
    if not _stays_inside(name) or not (root / name).resolve().is_relative_to(root.resolve()):
        raise DataError(f"{location}: path {name!r} leads out of the folder; do not unpack this")
    path = PurePath(name)
    if not _is_audio_name(path) or any(part.startswith(".") for part in path.parts):
        raise DataError(f"{location}: path {name!r} is not that of an audio file; do not unpack this")


def write_audio(root: Path, name: str, content: BinaryIO, location: str) -> None:
    """Write an unpacked audio file.

    A file that already holds the same bytes is left alone, so that an interrupted unpacking can be continued.

    Args:
        root: Folder that is unpacked into.
        name: Path of the file, relative to `root`.
        content: Content of the file, open at its beginning.
        location: Prefix of error messages.
    Raises:
        DataError: as `check_name`, and if the file exists with other content.
    """
    check_name(root, name, location)
    path = root / name
    if path.exists():
        if not _has_content(path, content):
            raise DataError(f"{location}: {path} is already there with other bytes; choose another folder")
        return
    with atomic_write(path, "wb") as handle:
        shutil.copyfileobj(content, handle, 1 << 20)


def _has_content(path: Path, content: BinaryIO) -> bool:
    """Whether a file holds what another does."""
    with path.open("rb") as handle:
        while True:
            block = handle.read(1 << 20)
            if block != content.read(1 << 20):
                return False
            if not block:
                return True


def _inside_folder(part: Audio, root: Path, new_paths: dict[Path, str]) -> Audio:
    """The audio part with a path that stays inside any folder; `new_paths` caches the renamed files."""
    path = PurePath(part.path)
    if _stays_inside(part.path) and _is_audio_name(path) and not any(name.startswith(".") for name in path.parts):
        return part
    file = root / part.path
    if file not in new_paths:
        suffix = file.suffix.lower() if _is_audio_name(file) else UNKNOWN_SUFFIX
        new_paths[file] = f"clips/{audio_sha256(file)[:32]}{suffix}"
    return replace(part, path=new_paths[file])


def _is_audio_name(path: PurePath) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES or path.suffix == UNKNOWN_SUFFIX


def _stays_inside(path: str) -> bool:
    """True for a relative path that cannot lead out of the folder it starts from, on any operating system."""
    parts = PurePath(path).parts
    return not (PurePath(path).is_absolute() or ".." in parts or "\\" in path or ":" in path)
