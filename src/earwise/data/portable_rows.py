"""Manifest rows together with their audio files, for packing into one archive and unpacking elsewhere.

Used by `data/webdataset.py` and `data/parquet.py`. One row is held in memory at a time, so memory does not grow with
the size of the manifest. An audio file keeps the relative path that its row gives it, and is unpacked under that path;
a file outside the manifest's folder is renamed to its hash under `clips/`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from earwise.audio import audio_sha256
from earwise.data import manifest
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
    for number, example in enumerate(manifest.iterate(path, check_files=True, require_audio=False)):
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


def write_audio(root: Path, name: str, data: bytes, location: str) -> None:
    """Write an unpacked audio file.

    A file that already holds the same bytes is left alone, so that an interrupted unpacking can be continued.

    Args:
        root: Folder that is unpacked into.
        name: Path of the file, relative to `root`.
        data: Content of the file.
        location: Prefix of error messages.
    Raises:
        DataError: if the path leads out of `root`, or the file exists with other content.
    """
    if not _stays_inside(name):
        raise DataError(f"{location}: path {name!r} leads out of the folder; do not unpack this")
    path = root / name
    if path.exists():
        if path.read_bytes() != data:
            raise DataError(f"{location}: {path} is already there with other bytes; choose another folder")
        return
    with atomic_write(path, "wb") as handle:
        handle.write(data)


def _inside_folder(part: Audio, root: Path, new_paths: dict[Path, str]) -> Audio:
    """The audio part with a path that stays inside any folder; `new_paths` caches the renamed files."""
    if _stays_inside(part.path):
        return part
    file = root / part.path
    if file not in new_paths:
        new_paths[file] = f"clips/{audio_sha256(file)[:32]}{file.suffix.lower()}"
    return replace(part, path=new_paths[file])


def _stays_inside(path: str) -> bool:
    """True for a relative path that cannot lead out of the folder it starts from, on any operating system."""
    parts = PurePath(path).parts
    return not (PurePath(path).is_absolute() or ".." in parts or "\\" in path or ":" in path)
