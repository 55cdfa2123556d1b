"""MMAU (arXiv:2410.19168): read the benchmark's JSON file, name its edition, score it, write a submission file.

Several editions of test-mini were published under one name, and 36 % of the items differ between the two that people
quote. The edition is therefore recognised by the content of the items and written into every result row. Fields of the
file: `id, audio_id, question, choices, answer, dataset, task, split, category, sub-category, difficulty`.

Source: the public files of Sakshi113/MMAU. Deviations: (1) `category` is a list of one text in some rows and becomes
that text; (2) an item without a completion is written with an empty prediction: the official program leaves out items
that lack the key, so that missing answers would raise the accuracy.
"""

from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.published import mmau_editions
from earwise.evaluation.published.choice_file import ChoiceFields, fingerprint, read_choice_examples
from earwise.evaluation.published.submission import write_submission
from earwise.evaluation.results import EvalRun
from earwise.evaluation.task import Task
from earwise.types import Example

NAME = "mmau"
VERSIONS = {
    "cded6fe68a8c60ef": mmau_editions.OLD,
    "8e9a2d07448b2e50": mmau_editions.NEW,
}
"""First 16 digits of `fingerprint` -> edition, from the files at the named commits (1,000 items each)."""
REQUIRED_FIELDS = ("id", "audio_id", "question", "choices")
FIELDS = ChoiceFields(audio="audio_id", task="task", difficulty="difficulty")
PUBLISHED_ITEMS = 1000
"""Number of items of test-mini, the smallest published file."""
BROKEN_SHARE = 0.02
"""Share of answers outside the options from which a file is refused; the withdrawn edits of May 2025 have 14.7 %."""


def version(rows: list[dict[str, Any]]) -> str:
    """Name of the edition that these items are, or are a part of, or `unknown` with their fingerprint.

    Raises:
        DataError: if more answers are not among their options than in any edition that is in use, or items of two
            editions are mixed.
    """
    outside = [row for row in rows if row.get("answer") and row["answer"] not in row["choices"]]
    if len(outside) > BROKEN_SHARE * len(rows):
        first = outside[0]
        # Only the published files have this size; in a file of one's own an answer is simply wrong.
        is_published = len(rows) >= PUBLISHED_ITEMS
        remedy = (
            "a withdrawn edit of May 2025; take the file of 9 August 2025 or later"
            if is_published
            else "correct the answer, or write it as one of the options"
        )
        raise DataError(
            f"{len(outside)} of {len(rows)} answers are not among their options (first: item {first['id']!r}, answer "
            f"{first['answer']!r}, options {first['choices']!r}): {remedy}"
        )
    digest = fingerprint(rows)
    if digest in VERSIONS:
        return VERSIONS[digest]
    return mmau_editions.part_of_edition(rows) or f"unknown ({digest}, {len(rows)} items)"


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
    return read_choice_examples(path, audio_root, FIELDS, NAME, required=REQUIRED_FIELDS, edition=version)


def write_predictions(run: EvalRun, path: Path, source: Path) -> int:
    """Write MMAU's submission file, see `write_submission`."""
    return write_submission(run, path, source, metric.MMAU)


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
    unverified="Parquet files and hub names (lmms-lab/mmau, TwinkStart/MMAU, gamma-lab-umd/MMAU-test-mini)",
)
