"""What SARI's corpus is built from: labelled or captioned clips, and multiple-choice questions that exist already."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.data.sources.row_readers import json_rows
from earwise.datasets.labels import collection as collections
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.sari.captions import caption_facts
from earwise.datasets.sari.manifest_clips import read_clips
from earwise.datasets.sari.options import SariOptions
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard, in_shard
from earwise.errors import ConfigError
from earwise.types import Audio, Example


@dataclass(frozen=True, slots=True)
class SariInputs:
    """Clips to write questions about, and questions to keep."""

    rows: Sequence[LabelRow] = ()
    """Rows of the clips, from `collection.load`; those with a field `caption` keep it."""
    root: Path = Path()
    """Folder that the rows' paths start from."""
    questions: Sequence[Example] = ()
    """Multiple-choice questions that exist already, about one clip each (AVQA in the paper); others are left out."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip with everything that is known about it."""

    path: str
    """Path of the file, relative to `root`."""
    root: Path
    """Folder that the path starts from."""
    row: Mapping[str, Any]
    """The clip's row: caption, category, source and so on, as far as they are known."""
    facts: Sequence[Sequence[str]]
    """Pairs of field and name from the clip's labels, of which a template can make a caption."""

    @property
    def file(self) -> Path:
        """The file."""
        return self.root / self.path


@dataclass(frozen=True, slots=True)
class SelectedInputs:
    """The clips and questions of one run: those of the split and the shard that can be used."""

    clips: list[Clip]
    """Clips to write questions about."""
    questions: list[tuple[Example, Clip]]
    """Existing questions, each with its clip."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of existing questions that cannot be used, by reason."""


def load_inputs(collection_names: Sequence[str | Path], manifests: Sequence[Path] = ()) -> SariInputs:
    """Read the clips of collections and the questions of manifests.

    Args:
        collection_names: Paths of collections (see `collection.load`) or of manifests, whose clips are taken, or
            "starter" for the bundled collection. A clip that several name keeps the row of the first.
        manifests: Manifests with existing questions; their audio files need not be there yet.
    Raises:
        ConfigError: if there is neither a collection nor a manifest.
        DataError: if one of them cannot be read.
    """
    if not collection_names and not manifests:
        raise ConfigError("nothing to build from; name a collection of clips, or --items with questions")
    loaded = [_load_collection(STARTER if name == "starter" else Path(name)) for name in collection_names]
    questions = [row for name in manifests for row in manifest.read(name, check_files=False)]
    if len(loaded) == 1:
        return SariInputs(*loaded[0], questions)
    rows: dict[Path, LabelRow] = {}
    for collection, root in loaded:
        for row in collection:
            path = root / row["path"]
            rows.setdefault(path.absolute(), {**row, "path": path.as_posix()})
    return SariInputs(list(rows.values()), Path(), questions)


def _load_collection(path: Path) -> tuple[list[LabelRow], Path]:
    """The rows of a collection, or of a manifest's clips, and the folder that their paths start from."""
    if path.is_file() and path.suffix.lower() != ".csv":
        _, first_row = next(iter(json_rows(path, (), lambda line: None)), ("", {}))
        if "messages" in first_row:
            return read_clips(path), Path()
    return collections.load(path)


def select_inputs(inputs: SariInputs, options: SariOptions, shard: Shard) -> SelectedInputs:
    """Select the clips and questions that belong to the split and the shard and can be used.

    Args:
        inputs: All clips and questions.
        options: Options of the corpus; its `split` counts here.
        shard: Shard of this process, by the hash of a clip's path.
    """

    def belongs_to_shard(path: str) -> bool:
        return shard == UNSHARDED or in_shard(hashlib.sha256(path.encode()).hexdigest(), shard)

    clips = [
        Clip(row["path"], inputs.root, row, caption_facts(row))
        for row in inputs.rows
        if options.split in (None, row["split"]) and belongs_to_shard(row["path"])
    ]
    clips_by_file = {clip.file.absolute(): clip for clip in clips}
    questions: list[tuple[Example, Clip]] = []
    left_out = Counter[str]()
    for example in inputs.questions:
        if options.split not in (None, example.split):
            left_out["other split"] += 1
        elif not example.choices or not example.answer:
            left_out["no choices or no answer"] += 1
        elif len(example.audio_paths) != 1:
            left_out["not one clip"] += 1
        elif example.clips[0].is_segment:
            left_out["a segment of a file"] += 1
        elif belongs_to_shard(
            next(part.path for turn in example.turns for part in turn.parts if isinstance(part, Audio))
        ):
            clip = clips_by_file.get(example.audio_paths[0].absolute()) or _clip_of(example)
            questions.append((example, clip))
    return SelectedInputs(clips, questions, dict(left_out))


def _clip_of(example: Example) -> Clip:
    """The clip of a question, with what the question's own row says about it."""
    meta = example.meta
    facts = [[str(meta["field"]), str(meta["label"])]] if {"field", "label"} <= set(meta) else []
    return Clip(example.audio_paths[0].as_posix(), Path(), meta, facts)
