"""ADQA-Bench (arXiv:2607.18718, DCASE 2026 Task 5): questions that were kept only if they need the audio.

Data: `dev.jsonl` (1,607 items with answers) and `eval-noanswer.jsonl` (3,000 items, a submission file is written), rows
`id, audio_path, question, choices` and `answer` where it is published. Metric: accuracy.
"""

from pathlib import Path

from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.published.choice_file import ChoiceFields, read_choice_examples
from earwise.evaluation.published.submission import write_official
from earwise.evaluation.results import EvalRun
from earwise.evaluation.task import Task
from earwise.types import Example

NAME = "adqa"
FIELDS = ChoiceFields(audio="audio_path", task="task", source="source_dataset")


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a file of ADQA-Bench.

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is not ADQA-Bench's, or none of its clips exists.
    """
    return read_choice_examples(path, audio_root, FIELDS, NAME, required=("id", "audio_path", "question", "choices"))


def write_predictions(run: EvalRun, path: Path, source: Path) -> int:
    """Write the answers that were read, for submission."""
    return write_official(path, run.rows, source=source, key="prediction", field="answer")


TASK = Task(
    name=NAME,
    load=load,
    score=metric.score,
    scorer=metric.SCORER,
    score_notes=metric.SCORE_NOTES,
    headline="lenient",
    write_predictions=write_predictions,
    source="arXiv:2607.18718, DCASE 2026 Task 5",
    licence="Apache-2.0",
    unverified="the published files; their fields are those of their page",
)
