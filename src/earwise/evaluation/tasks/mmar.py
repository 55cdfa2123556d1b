"""MMAR (arXiv:2505.13032): 1,000 questions about speech, sound, music and their mixtures, scored by MMAU's matcher.

Source: the public `MMAR-meta` file of ddlBoJack/MMAR (a JSON list or one object per line). Fields: `id, audio_path,
question, choices, answer, modality, category, sub-category, language, source, url, timestamp, thinking, cue, rubric`.
`Example.task` is the modality. The annotators' reasoning and the rubric are public and would give the answer away: they
are left out of the Example.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.published.choice_file import ChoiceFields, fingerprint, read_choice_examples
from earwise.evaluation.published.submission import write_submission
from earwise.evaluation.results import EvalRun
from earwise.evaluation.task import Task
from earwise.types import Example

NAME = "mmar"
VERSIONS = {"25cfd0cbafb9fc29": "meta (3bce090)"}
"""First 16 digits of `fingerprint` -> edition, from the file at the named commit."""
REQUIRED_FIELDS = ("id", "audio_path", "question", "choices", "modality")
FIELDS = ChoiceFields(
    audio="audio_path",
    task="modality",
    source="source",
    language="language",
    left_out=("thinking", "cue", "rubric"),
)


def version(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name of the edition that these items are, or `unknown` with their fingerprint."""
    digest = fingerprint(rows)
    return VERSIONS.get(digest, f"unknown ({digest}, {len(rows)} items)")


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
    return read_choice_examples(path, audio_root, FIELDS, NAME, required=REQUIRED_FIELDS, edition=version)


def write_predictions(run: EvalRun, path: Path, source: Path) -> int:
    """Write MMAR's submission file, see `write_submission`."""
    return write_submission(run, path, source, metric.MMAR)


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
    unverified="hub name (ngqtrung/mmar)",
)
