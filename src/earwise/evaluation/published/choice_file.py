"""What the files of published multiple-choice benchmarks have in common: rows, their edition, their clips, Examples.

A benchmark file is a JSON list or one JSON object per line with `id`, `question`, `choices` and mostly `answer`; the
other names differ (`ChoiceFields`). Several editions are published under one name, so an edition is recognised by the
content of its items (`fingerprint`).
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.data.interchange.detection import detect_kind
from earwise.data.manifest_path import manifest_path
from earwise.data.readers import row_files
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

TABLE_KINDS = ("parquet", "datasets")
"""Forms of `interchange.detection` in which benchmarks are published beside JSON."""
AUDIO_FIELDS = ("audio_id", "audio_path")
"""Names of the clip in the benchmarks' JSON files."""


@dataclass(frozen=True, slots=True)
class ChoiceFields:
    """Names of the fields of a benchmark's rows. An empty name: the benchmark has no such field."""

    audio: str
    """The clip, relative to the folder of clips. It is the Example's `group` too."""
    task: str
    """The domain (sound, music, speech)."""
    category: str = "category"
    source: str = "dataset"
    difficulty: str = ""
    language: str = ""
    left_out: tuple[str, ...] = ()
    """Fields that would give the answer away."""

    def names(self) -> set[str]:
        """The names that are not empty."""
        names = (self.audio, self.task, self.category, self.source, self.difficulty, self.language)
        return {name for name in names if name}


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of the items' content (id, question, choices, answer), independent of the file's layout; 16 hex digits."""
    items = sorted(json.dumps([row.get(key) for key in ("id", "question", "choices", "answer")]) for row in rows)
    return hashlib.sha256("\n".join(items).encode()).hexdigest()[:16]


def read_items(path: Path, required: tuple[str, ...], key: str = "id") -> list[dict[str, Any]]:
    """The items of a benchmark file, a JSON list or one object per line.

    Args:
        path: The file.
        required: Fields that every item must have.
        key: Field that must differ from item to item; empty: none.
    Raises:
        DataError: if the file is not JSON or empty, an item lacks a field, or two have one key; it names the item.
    """
    rows = (
        _table_rows(path) if detect_kind(path) in TABLE_KINDS else [dict(row) for _, row in row_files.read_rows(path)]
    )
    if not rows:
        raise DataError(f"{path}: holds no items; download it again")
    keys: set[str] = set()
    for number, row in enumerate(rows, 1):
        missing = [name for name in required if name not in row] if isinstance(row, dict) else list(required)
        if missing:
            raise DataError(
                f"{path}: item {number} has no {', '.join(missing)}; is this the file of another benchmark?"
            )
        if key and row[key] in keys:
            raise DataError(f"{path}: item {number}: {key} {row[key]!r} stands twice; keep one of them")
        keys.add(row[key] if key else str(number))
    return rows


def read_rows(path: Path, required: tuple[str, ...]) -> list[dict[str, Any]]:
    """The items of a multiple-choice benchmark, each with a list of options under `choices`.

    Some published copies hold the list as text (`"['rain', 'wind']"` or JSON), which is read too.

    Args:
        path: The file.
        required: Fields that every item must have.
    Raises:
        DataError: see `read_items`; also if `choices` is no list.
    """
    rows = read_items(path, required)
    for number, row in enumerate(rows, 1):
        choices = list_of_texts(row["choices"])
        if choices is None:
            raise DataError(f"{path}: item {number}: choices is {row['choices']!r}, not a list of option texts")
        row["choices"] = choices
    return rows


def list_of_texts(value: Any) -> list[Any] | None:
    """A list, or the list that a text spells in JSON or in Python; None for anything else.

    >>> list_of_texts('["a", "b"]'), list_of_texts("['a', 'b']"), list_of_texts("a")
    (['a', 'b'], ['a', 'b'], None)
    """
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return None
    return value if isinstance(value, list) else None


def _table_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a benchmark that is published as Parquet or as a table, under the names of its JSON file.

    Nested columns (such as MMAU's `other_attributes`, which hold the id) become fields of the row.
    """
    rows = []
    for example in manifest.iterate(manifest_path(str(path), Path())):
        nested = [value for value in example.meta.values() if isinstance(value, dict)]
        row: dict[str, Any] = {"id": example.id} | {name: value for part in nested for name, value in part.items()}
        row |= {name: value for name, value in example.meta.items() if not isinstance(value, dict)}
        row |= {"question": example.question, "choices": list(example.choices)}
        row |= {"answer": example.answer[0]} if example.answer else {}
        row |= dict.fromkeys(AUDIO_FIELDS, str(example.audio_paths[0].absolute()))
        rows.append(row)
    return rows


def locate(name: str, path: Path, audio_root: Path | None) -> Path:
    """Path of the clip `name`: below `audio_root`, or beside the benchmark file `path`; with its sub-folders or without
    them."""
    root = path.parent if audio_root is None else audio_root
    candidates = [root / name, root / Path(name).name]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def check_audio(examples: list[Example], path: Path) -> None:
    """Refuse a benchmark none of whose clips exists; single missing clips become error rows, counted as wrong.

    Raises:
        DataError: if no clip at all exists.
    """
    if not any(clip.is_file() for example in examples for clip in example.audio_paths):
        first_clip = examples[0].audio_paths[0]
        raise DataError(
            f"{path}: none of its {len(examples)} clips is there (first: {first_clip}); "
            "name their folder with --audio-root"
        )


def missing_audio(examples: Iterable[Example]) -> list[Path]:
    """The clips that do not exist, each once, in the order of the examples."""
    clips = dict.fromkeys(clip for example in examples for clip in example.audio_paths)
    return [clip for clip in clips if not clip.is_file()]


def choice_example(row: Mapping[str, Any], fields: ChoiceFields, benchmark: str, edition: str, clip: Path) -> Example:
    """One item of a multiple-choice benchmark as an Example.

    Args:
        row: The item, as `read_rows` gives it.
        fields: Where the benchmark keeps what; a field that is neither named there nor left out goes into `meta`.
        benchmark: Name of the benchmark.
        edition: Name of the edition of the benchmark.
        clip: Path of the clip.
    Returns:
        The Example. `answer` is empty where the benchmark hides it. A category that is a list of texts is joined.
    """
    category = row.get(fields.category) or ""
    used_fields = {"id", "question", "choices", "answer", *fields.names(), *fields.left_out}
    return Example(
        id=str(row["id"]),
        turns=(Turn("user", (Audio(str(clip.absolute())), Text(str(row["question"])))),),
        answer=(str(row["answer"]),) if row.get("answer") else (),
        choices=tuple(map(str, row["choices"])),
        task=str(row.get(fields.task) or benchmark),
        category=", ".join(category) if isinstance(category, list) else str(category),
        difficulty=row.get(fields.difficulty) if fields.difficulty else None,
        source=str(row.get(fields.source) or benchmark),
        group=str(row[fields.audio]),
        split="test",
        language=(row.get(fields.language) or "") if fields.language else "",
        meta={
            "benchmark": benchmark,
            "version": edition,
            **{key: value for key, value in row.items() if key not in used_fields},
        },
    )
