"""Any JSONL manifest as a task: what earwise's own builders write, and what a user writes by hand.

Questions with options are scored like MMAU's (`metrics/mmau.py`), open questions by their accepted answers.
"""

from dataclasses import replace
from pathlib import Path

from earwise.data import manifest
from earwise.errors import DataError
from earwise.evaluation.metrics import mmau
from earwise.evaluation.task import Task
from earwise.types import Example


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a manifest for evaluation.

    Args:
        path: The JSONL file.
        audio_root: Folder that relative audio paths start from; None: the manifest's own folder.
    Raises:
        DataError: if the manifest is wrong (see `earwise.data.manifest.read`) or empty, or no row has an answer.
    """
    examples = manifest.read(path, check_files=audio_root is None)
    if not any(example.answer for example in examples):
        raise DataError(f"{path}: none of its {len(examples)} rows has an answer; evaluation needs gold answers")
    return examples if audio_root is None else [replace(example, root=audio_root) for example in examples]


TASK = Task(
    name="manifest",
    load=load,
    score=mmau.score,
    scorer=mmau.SCORER,
    score_notes=mmau.SCORE_NOTES,
    headline="official",
    reasoning_headline="lenient",
    source="the user's own file",
    licence="stated by each row",
)
