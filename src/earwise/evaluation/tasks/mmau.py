"""MMAU (arXiv:2410.19168): read the benchmark's JSON file, name its edition, score it, write a submission file.

Several editions of test-mini were published under one name, and 36 % of the items differ between the two that people
quote. The edition is therefore recognised by the content of the items and written into every result row. Fields of the
file: `id, audio_id, question, choices, answer, dataset, task, split, category, sub-category, difficulty`.

Source: the public files of Sakshi113/MMAU. Deviations: (1) `category` is a list of one text in some rows and becomes
that text; (2) an item without a completion is written with an empty prediction: the official program leaves out items
that lack the key, so that missing answers would raise the accuracy.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.results import EvalRun
from earwise.evaluation.task import Task
from earwise.files import write_json, write_jsonl, write_text
from earwise.types import Audio, Example, Text, Turn

NAME = "mmau"
PREDICTION_KEY = metric.MMAU.prediction_key
"""The field that the official program reads; its README says `model_prediction`."""
VERSIONS = {
    "cded6fe68a8c60ef": "test-mini old (1f675a9)",
    "8e9a2d07448b2e50": "test-mini v05.15.25 (f0a4a97)",
}
"""First 16 digits of `fingerprint` -> edition, from the files at the named commits (1,000 items each)."""
REQUIRED_FIELDS = ("id", "audio_id", "question", "choices")
BROKEN_SHARE = 0.02
"""Share of answers outside the options from which a file is refused; the withdrawn edits of May 2025 have 14.7 %."""


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of the items' content (id, question, choices, answer), independent of the file's layout; 16 hex digits."""
    items = sorted(json.dumps([row.get(key) for key in ("id", "question", "choices", "answer")]) for row in rows)
    return hashlib.sha256("\n".join(items).encode()).hexdigest()[:16]


def read_rows(path: Path, required: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a benchmark file, a JSON list or one object per line.

    Args:
        path: The file.
        required: Fields that every row must have.
    Raises:
        DataError: if the file is not JSON or empty, a row lacks a field, or two rows have one id; it names the row.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give the benchmark's JSON file") from error
    try:
        is_list = text.lstrip().startswith("[")
        rows = json.loads(text) if is_list else [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); download it again") from error
    if not rows:
        raise DataError(f"{path}: holds no items; download it again")
    ids: set[str] = set()
    for number, row in enumerate(rows, 1):
        missing = [key for key in required if key not in row] if isinstance(row, dict) else list(required)
        if missing:
            raise DataError(
                f"{path}: item {number} has no {', '.join(missing)}; is this the file of another benchmark?"
            )
        if not isinstance(row["choices"], list):
            raise DataError(f"{path}: item {number}: choices is {row['choices']!r}, not a list of option texts")
        if row["id"] in ids:
            raise DataError(f"{path}: item {number}: id {row['id']!r} stands twice; keep one of them")
        ids.add(row["id"])
    return rows


def version(rows: list[dict[str, Any]]) -> str:
    """Name of the edition that these items are, or `unknown` with their fingerprint.

    Raises:
        DataError: if so many answers are not among their options that this must be one of the withdrawn edits.
    """
    outside = [row["id"] for row in rows if row.get("answer") and row["answer"] not in row["choices"]]
    if len(outside) > BROKEN_SHARE * len(rows):
        raise DataError(
            f"{len(outside)} of {len(rows)} answers are not among their options (first: {outside[0]}): a withdrawn "
            "edit of May 2025; take the file of 9 August 2025 or later"
        )
    digest = fingerprint(rows)
    return VERSIONS.get(digest, f"unknown ({digest}, {len(rows)} items)")


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


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read an MMAU file.

    Args:
        path: The benchmark's JSON (or JSONL) file.
        audio_root: Folder that holds `test-mini-audios/` or the clips themselves; None: the file's own folder.
    Returns:
        One Example per item, in the file's order. `task` is the domain (sound, music, speech), `category` the kind of
        question; `meta` holds `benchmark`, `version` and the fields that Example lacks. Hidden answers stay empty.
    Raises:
        DataError: if the file is not MMAU's, is a withdrawn edition, or none of its clips exists.
    """
    rows = read_rows(path, REQUIRED_FIELDS)
    edition = version(rows)
    examples = [_example(row, edition, locate(str(row["audio_id"]), path, audio_root)) for row in rows]
    check_audio(examples, path)
    return examples


def write_official(
    path: Path,
    samples: Iterable[Mapping[str, Any]],
    *,
    source: Path,
    key: str = PREDICTION_KEY,
    field: str = "output",
) -> int:
    """Write predictions in the benchmark's own format: its rows unchanged, each with the prediction under `key`.

    Args:
        path: File to write; `.jsonl` gives one object per line, any other name a JSON list.
        samples: Rows of a `samples.jsonl`.
        source: The benchmark file that the samples were made from.
        key: Name of the prediction's field (MMAU's program reads `model_output`, MMAR's `answer_prediction`).
        field: Field of a sample that is the prediction: `output` (raw) or `answer` (extracted, empty if there is none).
    Returns:
        Number of items without a sample; they are written with an empty prediction, so that they count.
    Raises:
        DataError: if a sample belongs to no item of `source`, or the disk refuses.
    """
    rows = read_rows(source, ("id", "question", "choices"))
    predictions = {str(sample["id"]): str(sample[field] or "") for sample in samples if not sample.get("permutation")}
    unknown = predictions.keys() - {str(row["id"]) for row in rows}
    if unknown:
        raise DataError(
            f"{source}: has no item {min(unknown)!r} ({len(unknown)} such samples); give the file they came from"
        )
    filled = [{**row, key: predictions.get(str(row["id"]), "")} for row in rows]
    if path.suffix == ".jsonl":
        write_jsonl(path, filled)
    else:
        write_json(path, filled)
    return sum(str(row["id"]) not in predictions for row in rows)


def write_submission(run: EvalRun, path: Path, source: Path, layout: metric.Layout) -> int:
    """Write a run's predictions in the benchmark's format and, beside them, the summary that its program would print.

    The prediction is the raw output where the headline score reads it, and the extracted answer where the headline is
    `lenient` (prompt styles that reason aloud): the official program would otherwise match words of the reasoning.

    Args:
        run: A finished run on the benchmark, or on a part of it.
        path: File to write. The summary gets the same name with the suffix `.txt`, if all items have a gold answer.
        source: The benchmark file.
        layout: Layout of the benchmark's program.
    Returns:
        Number of items without a prediction.
    Raises:
        DataError: see `write_official`.
    """
    field = "answer" if run.metrics["headline"] == "lenient" else "output"
    num_missing = write_official(path, run.rows, source=source, key=layout.prediction_key, field=field)
    filled = read_rows(path, ("id", layout.prediction_key, "choices"))
    fields = ("answer", *(name for _, name, _ in layout.groups))
    if all(row.get(name) is not None for row in filled for name in fields):
        summary = metric.official_summary(filled, layout)
        write_text(path.with_suffix(".txt"), "\n".join(metric.summary_lines(summary)) + "\n")
    return num_missing


def write_predictions(run: EvalRun, path: Path, source: Path) -> int:
    """Write MMAU's submission file, see `write_submission`."""
    return write_submission(run, path, source, metric.MMAU)


def _example(row: dict[str, Any], edition: str, clip: Path) -> Example:
    """One item as an Example whose clip lies at `clip`."""
    category = row.get("category") or ""
    used_fields = (*REQUIRED_FIELDS, "answer", "task", "category", "difficulty", "dataset")
    other_fields = {key: value for key, value in row.items() if key not in used_fields}
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
        meta={"benchmark": NAME, "version": edition, **other_fields},
    )


TASK = Task(
    name=NAME,
    load=load,
    score=metric.score,
    scorer=metric.SCORER,
    score_notes=metric.SCORE_NOTES,
    headline="official",
    reasoning_headline="lenient",
    write_predictions=write_predictions,
    source="arXiv:2410.19168, Sakshi113/MMAU",
    licence="see the benchmark's repository",
)
