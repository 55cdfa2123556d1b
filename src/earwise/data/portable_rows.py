"""What travels when a manifest is packed: rows whose paths stay inside any folder, and their sounds' bytes.

Under `data/shards.py` and `data/parquet.py`. One sample is held at a time, so memory does not grow with the collection.
A sound goes by the path that its row gives it, so that it comes back under it; one outside the manifest's folder goes
by its hash under `clips/`.
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
class Sample:
    """A row that travels: its number from 0, the row with paths as they will be, and the files they are now."""

    number: int
    example: Example
    files: tuple[Path, ...]
    size: int
    """Bytes of the files."""


def samples(path: Path) -> Iterator[Sample]:
    """The rows of a manifest, ready to be packed.

    Raises:
        DataError: for a bad row or a missing sound; see `manifest.iterate`.
    """
    names: dict[Path, str] = {}
    for number, example in enumerate(manifest.iterate(path, check_files=True)):
        files = example.audio_paths
        turns = []
        for turn in example.turns:
            parts = (_inside(part, example.root, names) if isinstance(part, Audio) else part for part in turn.parts)
            turns.append(Turn(turn.role, tuple(parts)))
        yield Sample(number, replace(example, turns=tuple(turns)), files, sum(file.stat().st_size for file in files))


def _inside(part: Audio, root: Path, names: dict[Path, str]) -> Audio:
    """A path that stays within any folder it is unpacked into."""
    if _is_safe(part.path):
        return part
    file = root / part.path
    if file not in names:
        names[file] = f"clips/{audio_sha256(file)[:32]}{file.suffix.lower()}"
    return Audio(names[file])


def _is_safe(path: str) -> bool:
    parts = PurePath(path).parts
    return not (PurePath(path).is_absolute() or ".." in parts or "\\" in path or ":" in path)


def sounds(example: Example) -> list[Audio]:
    return [part for turn in example.turns for part in turn.parts if isinstance(part, Audio)]


def read_row(data: bytes, root: Path, where: str) -> Example:
    try:
        return manifest.from_line(data.decode("utf-8"), root=root, location=where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text ({error.reason}); pack it again") from error


def write_sound(root: Path, name: str, data: bytes, where: str) -> None:
    """Write a sound once; the same again is passed over, so that an interrupted unpacking goes on from there."""
    if not _is_safe(name):
        raise DataError(f"{where}: path {name!r} leads out of the folder; do not unpack this")
    path = root / name
    if path.exists():
        if path.read_bytes() != data:
            raise DataError(f"{where}: {path} is already there with other bytes; choose another folder")
        return
    with atomic_write(path, "wb") as handle:
        handle.write(data)
