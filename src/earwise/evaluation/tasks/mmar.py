"""MMAR (arXiv:2505.13032): 1,000 questions about speech, sound, music and their mixtures, scored by MMAU's matcher.

Source: the public `MMAR-meta` file of ddlBoJack/MMAR (a JSON list or one object per line). Fields: `id, audio_path,
question, choices, answer, modality, category, sub-category, language, source, url, timestamp, thinking, cue, rubric`.
`Example.task` is the modality. The annotators' reasoning and the rubric are public and would give the answer away: they
are left out of the Example.
"""

from pathlib import Path
from typing import Any

from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.results import EvalRun
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import mmau
from earwise.types import Audio, Example, Text, Turn

NAME = "mmar"
VERSIONS = {"25cfd0cbafb9fc29": "meta (3bce090)"}
"""First 16 digits of `mmau.fingerprint` -> edition, from the file at the named commit."""
REQUIRED_FIELDS = ("id", "audio_path", "question", "choices", "modality")
ANSWER_FIELDS = ("thinking", "cue", "rubric")
"""Fields that explain the answer; they are left out of the Example."""


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read an MMAR file.

    Args:
        path: The benchmark's meta file.
        audio_root: Folder that holds `audio/` or the clips themselves; None: the file's own folder.
    Returns:
        One Example per item, in the file's order.
    Raises:
        DataError: if the file is not MMAR's, or none of its clips exists.
    """
    rows = mmau.read_rows(path, REQUIRED_FIELDS)
    digest = mmau.fingerprint(rows)
    edition = VERSIONS.get(digest, f"unknown ({digest}, {len(rows)} items)")
    examples = [_example(row, edition, mmau.locate(str(row["audio_path"]), path, audio_root)) for row in rows]
    mmau.check_audio(examples, path)
    return examples


def write_predictions(run: EvalRun, path: Path, source: Path) -> int:
    """Write MMAR's submission file, see `mmau.write_submission`."""
    return mmau.write_submission(run, path, source, metric.MMAR)


def _example(row: dict[str, Any], edition: str, clip: Path) -> Example:
    """One item as an Example whose clip lies at `clip`."""
    used_fields = (*REQUIRED_FIELDS, *ANSWER_FIELDS, "answer", "category", "language", "source")
    other_fields = {key: value for key, value in row.items() if key not in used_fields}
    return Example(
        id=str(row["id"]),
        turns=(Turn("user", (Audio(str(clip.absolute())), Text(str(row["question"])))),),
        answer=(str(row["answer"]),) if row.get("answer") else (),
        choices=tuple(map(str, row["choices"])),
        task=str(row["modality"]),
        category=str(row.get("category") or ""),
        source=str(row.get("source") or NAME),
        group=str(row["audio_path"]),
        split="test",
        language=row.get("language") or "",
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
    source="arXiv:2505.13032, ddlBoJack/MMAR",
    licence="see the benchmark's repository",
)
