"""Joins manifests into one: a part of each, drawn by seed, with a held-out share.

For corpora that papers mix from several data sets (SARI's pool, Ke-Omni-R's halves, Qwen2-Audio's stages) and for
published files that come without the split `val`. What is drawn depends on the seed and the rows alone, not on file
names or on what else is joined. Manifests are read twice, row by row, so that only hashes are held in memory.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from earwise.data import manifest
from earwise.errors import ConfigError, DataError
from earwise.types import Example

FIELDS = ("task", "category", "source", "split", "language")
"""Fields of a row that conditions can name."""


@dataclass(frozen=True, slots=True)
class ManifestPart:
    """One manifest to join, or a part of it."""

    path: Path
    """The manifest."""
    count: int | None = None
    """Number of rows (or clips) to draw; None takes all."""


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What is taken of each manifest, and how rows are divided."""

    conditions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Field of a row, one of `FIELDS` -> values of which it must have one."""
    count_clips: bool = False
    """Whether `ManifestPart.count` counts clips, each with all its rows, and not rows."""
    val_share: float = 0.0
    """Share of the groups whose training rows get the split `val`. A row without a group is grouped by its clips."""
    seed: int = 0
    """Seed of what is drawn and held out."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.conditions if name not in FIELDS]:
            raise ConfigError(f"--where {unknown[0]}=...: rows can be chosen by {', '.join(FIELDS)}")
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"--val-share {self.val_share} is not a share from 0 to below 1")


@dataclass(slots=True)
class JoinedManifest:
    """What was written."""

    num_rows: int = 0
    rows_of_parts: dict[str, int] = field(default_factory=dict)
    """Manifest -> number of its rows that were taken."""
    splits: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    """Source and licence ("Clotho: ...") -> number of rows."""


def join_manifests(parts: Sequence[ManifestPart], out: Path, options: JoinOptions | None = None) -> JoinedManifest:
    """Write one manifest with the rows of several, in their order.

    Args:
        parts: The manifests.
        out: Manifest to write; it may not be one of `parts`.
        options: What is taken of each, and how rows are divided.
    Raises:
        ConfigError: if `out` is one of the manifests.
        DataError: if a manifest cannot be read, has fewer rows than are to be drawn, or shares an id with another.
    """
    options, joined = options or JoinOptions(), JoinedManifest()
    if any(part.path.absolute() == out.absolute() for part in parts):
        raise ConfigError(f"{out} would be written and read at once; choose another name for --out")

    def rows() -> Iterator[Example]:
        for part in parts:
            for example in _drawn_rows(part, options):
                row = _with_split(example, options)
                joined.rows_of_parts[str(part.path)] = joined.rows_of_parts.get(str(part.path), 0) + 1
                joined.splits[row.split] += 1
                joined.tasks[row.task] += 1
                joined.licences[f"{row.source}: {row.licence}"] += 1
                yield row

    joined.num_rows = manifest.write(out, rows())
    return joined


def _drawn_rows(part: ManifestPart, options: JoinOptions) -> Iterator[Example]:
    """The rows of one manifest that are taken, in its order."""
    drawn = None if part.count is None else _draw(part, part.count, options)
    num_rows = 0
    for example in _matching_rows(part.path, options.conditions):
        if drawn is None or _share(_unit(example, options), options.seed) in drawn:
            num_rows += 1
            yield example
    if not num_rows:
        wanted = ", ".join(f"{name} {' or '.join(values)}" for name, values in options.conditions.items())
        raise DataError(f"{part.path}: holds no row{' with ' + wanted if wanted else ''}; correct --where")


def _draw(part: ManifestPart, count: int, options: JoinOptions) -> set[float]:
    """Hashes of the rows (or clips) that are drawn: the smallest ones."""
    rows = _matching_rows(part.path, options.conditions)
    hashes = sorted({_share(_unit(example, options), options.seed) for example in rows})
    if len(hashes) < count:
        unit = "clips" if options.count_clips else "rows"
        raise DataError(f"{part.path}: {count} {unit} are to be drawn, and there are {len(hashes)}; ask for fewer")
    return set(hashes[:count])


def _matching_rows(path: Path, conditions: Mapping[str, Sequence[str]]) -> Iterable[Example]:
    for example in manifest.iterate(path, require_audio=False):
        if all(getattr(example, name) in values for name, values in conditions.items()):
            yield example


def _unit(example: Example, options: JoinOptions) -> str:
    """What is drawn as a whole: the row, or its clips."""
    return _clips_name(example) if options.count_clips else example.id


def _clips_name(example: Example) -> str:
    """The clips of a row by their paths within the row's folder, which do not depend on where that lies."""
    return "\x1f".join(clip.path.name for clip in example.clips) or example.id


def _with_split(example: Example, options: JoinOptions) -> Example:
    """The row, in the split `val` if its group is held out."""
    if not options.val_share or example.split != "train":
        return example
    group = example.group or _clips_name(example)
    is_held_out = _share(f"val:{group}", options.seed) < options.val_share
    return replace(example, split="val") if is_held_out else example


def _share(name: str, seed: int) -> float:
    """A number from 0 to below 1 that the seed and the name decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big") / 2**48
