"""What the files of published multiple-choice benchmarks have in common: rows, their edition, their clips, Examples.

A benchmark file is a JSON list or one JSON object per line with `id`, `question`, `choices` and mostly `answer`; the
other names differ (`ChoiceFields`). Several editions are published under one name, so an edition is recognised by the
content of its items (`fingerprint`).
"""

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.data.interchange.foreign_row import DatasetLocation, ForeignRow
from earwise.data.interchange.native_rows import native_row
from earwise.errors import DataError
from earwise.evaluation.published.table_rows import rows_of, table_location
from earwise.types import Audio, Example, Text, Turn

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
    """The items of a benchmark file: a JSON list, one object per line, or a table under its own column names.

    Args:
        path: The file, or a name on a hub.
        required: Fields that every item must have.
        key: Field that must differ from item to item; empty: none.
    Raises:
        DataError: if the file is not JSON or empty, an item lacks a field, or two have one key; it names the item.
    """
    rows = rows_of(path)
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

    Some published copies hold the list as text (`"['rain', 'wind']"` or JSON), which is read too. The columns of tables
    get the names of the benchmarks' JSON files (`_json_names`).

    Args:
        path: The file.
        required: Fields that every item must have.
    Raises:
        DataError: see `read_items`; also if `choices` is no list.
    """
    location = table_location(path)
    rows = read_items(path, required) if location is None else _json_names(location, read_items(path, (), ""))
    for number, row in enumerate(rows, 1):
        missing = [name for name in required if name not in row]
        if missing:
            raise DataError(
                f"{path}: item {number} has no {', '.join(missing)}; is this the file of another benchmark?"
            )
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


def _json_names(location: DatasetLocation, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table under the names of the benchmarks' JSON files.

    Columns are recognised as those of any other table (`data/interchange/native_rows.py`); nested columns (such as
    MMAU's `other_attributes`, which hold the id) become fields of the row.
    """
    named = []
    for number, values in enumerate(rows, 1):
        foreign = ForeignRow(f"{location.path}:row {number}", values, Path())
        native = native_row(foreign, f"row-{number}", columns=location.columns, prompt=location.prompt, path_text=str)
        audio, question = native["messages"][0]["content"][0], native["messages"][0]["content"][-1]
        row: dict[str, Any] = {"id": native["id"]}
        for value in values.values():
            row |= value if isinstance(value, dict) else {}
        row |= {name: value for name, value in values.items() if not isinstance(value, dict)}
        row |= {"question": question["text"]} | dict.fromkeys(AUDIO_FIELDS, audio["audio"])
        row |= {"choices": native["choices"]} if native["choices"] else {}
        row |= {"answer": native["answer"][0]} if native["answer"] else {}
        named.append(row)
    return named


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
            "name their folder with --audio-root (audio_root in a recipe)"
        )


def missing_audio(examples: Iterable[Example]) -> list[Path]:
    """The clips that do not exist, each once, in the order of the examples."""
    clips = dict.fromkeys(clip for example in examples for clip in example.audio_paths)
    return [clip for clip in clips if not clip.is_file()]


def question_turn(clips: Iterable[Path], text: str) -> tuple[Turn, ...]:
    """A question about clips as a conversation; without a text where the question is spoken."""
    parts = (*(Audio(str(clip.absolute())) for clip in clips), *((Text(text),) if text else ()))
    return (Turn("user", parts),)


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
        turns=question_turn([clip], str(row["question"])),
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


Edition = Callable[[list[dict[str, Any]]], str]
"""`edition(rows)`: name of the edition that the items are."""


def read_choice_examples(
    path: Path, audio_root: Path | None, fields: ChoiceFields, benchmark: str, *, required: tuple[str, ...],
    edition: Edition = fingerprint,
) -> list[Example]:  # fmt: skip
    """The items of a multiple-choice benchmark as Examples, in the file's order.

    Args:
        path: The file, or a name on a hub.
        audio_root: Folder of the clips, with their sub-folders or without them; None: the file's own folder.
        fields: Where the benchmark keeps what.
        benchmark: Name of the benchmark.
        required: Fields that every item must have.
        edition: Names the edition of the items.
    Raises:
        DataError: if the file is not the benchmark's, or none of its clips exists.
    """
    rows = read_rows(path, required)
    edition_name = edition(rows)
    examples = [
        choice_example(row, fields, benchmark, edition_name, locate(str(row[fields.audio]), path, audio_root))
        for row in rows
    ]
    check_audio(examples, path)
    return examples
