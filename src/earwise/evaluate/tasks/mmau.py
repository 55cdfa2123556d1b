"""MMAU's own JSON format: read it, say which version it is, write predictions back in it.

Source: the public files of Sakshi113/MMAU. Several versions of test-mini were published under one name and 36% of the
    items differ
between the two that people quote, so the version is told by the content of the items and stands in every result row.
Fields as in the file: `id, audio_id, question, choices, answer, dataset, task, split, category, sub-category,
difficulty`.

Deviations: (1) `category` is a list of one in some rows and becomes its text; (2) an item without a sample is written
    back with an
empty prediction: the official program leaves out items that lack the key, so missing answers would raise the accuracy.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.files import write_json, write_jsonl
from earwise.types import Audio, Example, Text, Turn

NAME = "mmau"
PREDICTION_KEY = "model_output"  # what the official program reads; its README says `model_prediction`

# First 16 hex digits of `fingerprint`, taken from the files at the named commits (1,000 items each).
VERSIONS = {
    "cded6fe68a8c60ef": "test-mini old (1f675a9)",
    "8e9a2d07448b2e50": "test-mini v05.15.25 (f0a4a97)",
}
NEEDED = ("id", "audio_id", "question", "choices")
BROKEN_SHARE = 0.02  # the withdrawn edits of May 2025 have 14.7% of the answers outside the options


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of what the items ask (id, question, choices, answer), whatever the file's layout; 16 hex digits."""
    items = sorted(json.dumps([row.get(key) for key in ("id", "question", "choices", "answer")]) for row in rows)
    return hashlib.sha256("\n".join(items).encode()).hexdigest()[:16]


def read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a benchmark file, a JSON list or one object a line, with the `needed` fields present and ids unique.

    Raises:
        DataError: naming the file and the row.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give the benchmark's JSON file") from error
    try:
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); download it again") from error
    if not rows:
        raise DataError(f"{path}: holds no items; download it again")
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        missing = [key for key in needed if key not in row] if isinstance(row, dict) else list(needed)
        if missing:
            raise DataError(
                f"{path}: item {number} has no {', '.join(missing)}; is this the file of another benchmark?"
            )
        if not isinstance(row["choices"], list):
            raise DataError(f"{path}: item {number}: choices is {row['choices']!r}, not a list of option texts")
        if row["id"] in seen:
            raise DataError(f"{path}: item {number}: id {row['id']!r} stands twice; keep one of them")
        seen.add(row["id"])
    return rows


def version(rows: list[dict[str, Any]]) -> str:
    """Name of the version that these items are, or `unknown` with their fingerprint.

    Raises:
        DataError: if so many answers are not among their options that this is one of the withdrawn edits.
    """
    outside = [row["id"] for row in rows if row.get("answer") and row["answer"] not in row["choices"]]
    if len(outside) > BROKEN_SHARE * len(rows):
        raise DataError(
            f"{len(outside)} of {len(rows)} answers are not among their options (first: {outside[0]}): a withdrawn "
            "edit of May 2025; take the file of 9 August 2025 or later"
        )
    print_ = fingerprint(rows)
    return VERSIONS.get(print_, f"unknown ({print_}, {len(rows)} items)")


def locate(name: str, path: Path, audio_root: Path | None) -> Path:
    """Where the clip `name` lies: under `audio_root` or beside the file `path`, with its sub-folders or without."""
    root = path.parent if audio_root is None else audio_root
    places = [root / name, root / Path(name).name]
    return next((place for place in places if place.is_file()), places[0])


def check_audio(examples: list[Example], path: Path) -> None:
    """Refuse a benchmark without any of its clips; single missing ones become error rows, counted as wrong.

    Raises:
        DataError: if no clip at all is there.
    """
    if not any(clip.is_file() for example in examples for clip in example.audio_paths):
        wanted = examples[0].audio_paths[0]
        raise DataError(
            f"{path}: none of its {len(examples)} clips is there (first: {wanted}); name their folder with --audio-root"
        )


def missing_audio(examples: Iterable[Example]) -> list[Path]:
    """The clips that are not there, each once, in the order of the examples."""
    return [
        clip
        for clip in dict.fromkeys(clip for example in examples for clip in example.audio_paths)
        if not clip.is_file()
    ]


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read an MMAU file.

    Args:
        path: The benchmark's JSON (or JSONL) file.
        audio_root: Folder that holds `test-mini-audios/` or the clips themselves; the file's own folder by default.
    Returns:
        One Example an item, in the file's order; `task` is the domain (sound, music, speech), `category` the kind of
        question,
        `meta` holds `benchmark` and `version` and the fields that have no place of their own. Hidden answers stay
        empty.
    Raises:
        DataError: if the file is not MMAU's, is a withdrawn version, or none of its clips is there.
    """
    rows = read_rows(path, NEEDED)
    known = version(rows)
    examples = [example(row, known, locate(str(row["audio_id"]), path, audio_root)) for row in rows]
    check_audio(examples, path)
    return examples


def example(row: dict[str, Any], known: str, clip: Path) -> Example:
    """One item as an Example whose clip lies at `clip`."""
    category = row.get("category") or ""
    used = (*NEEDED, "answer", "task", "category", "difficulty", "dataset")
    return Example(
        id=str(row["id"]),
        turns=(Turn("user", (Audio(str(clip.absolute())), Text(str(row["question"])))),),
        answer=(str(row["answer"]),) if row.get("answer") else (),
        choices=tuple(map(str, row["choices"])),
        task=row.get("task") or NAME,
        category=", ".join(category) if isinstance(category, list) else str(category),
        difficulty=row.get("difficulty"),
        source=str(row.get("dataset") or NAME),
        group=str(row["audio_id"]),
        split="test",
        meta={"benchmark": NAME, "version": known, **{key: value for key, value in row.items() if key not in used}},
    )


def write_official(
    path: Path, samples: Iterable[Mapping[str, Any]], *, source: Path, key: str = PREDICTION_KEY, field: str = "output"
) -> int:
    """Write predictions in the benchmark's own format: its rows unchanged, each with the prediction under `key`.

    Args:
        path: File to write; `.jsonl` gives one object a line, anything else a JSON list.
        samples: Rows of a `samples.jsonl`.
        source: The benchmark file the samples were made from.
        key: Name of the prediction's field (MMAU's program reads `model_output`, MMAR's `answer_prediction`).
        field: What of a sample is the prediction: `output` (raw) or `answer` (extracted, empty when there is none).
    Returns:
        How many items of the benchmark had no sample; they are written with an empty prediction, so that they count.
    Raises:
        DataError: if a sample is of no item of `source`, or the disk refuses.
    """
    rows = read_rows(source, ("id", "question", "choices"))
    said = {str(sample["id"]): str(sample[field] or "") for sample in samples if not sample.get("permutation")}
    strangers = said.keys() - {str(row["id"]) for row in rows}
    if strangers:
        raise DataError(
            f"{source}: has no item {min(strangers)!r} ({len(strangers)} such samples); give the file they came from"
        )
    filled = [{**row, key: said.get(str(row["id"]), "")} for row in rows]
    if path.suffix == ".jsonl":
        write_jsonl(path, filled)
    else:
        write_json(path, filled)
    return sum(str(row["id"]) not in said for row in rows)
