"""Audio question answering of DCASE 2025, Task 5 (arXiv:2505.07365): three parts with options.

Bioacoustics, temporal soundscapes, complex questions.

Data: a hub (`PeacefulData/2025_DCASE_AudioQA_Official`; its terms have to be accepted there): a folder with one JSON
file a question, `audio_url, question, choice` (or `choices`) and, but for the evaluation set, `answer`; options and
answers carry their letters (`A. Door`). One JSON list or JSON lines of the same objects are read too. Metric: accuracy.
The submission file is a CSV of `question,answer` with the id and the chosen option's text.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.published.choice_file import check_audio, locate, question_turn
from earwise.evaluation.published.table_rows import first_value, rows_of
from earwise.evaluation.results import EvalRun
from earwise.evaluation.task import Task
from earwise.files import write_text
from earwise.types import Example

PARTS = {"1": "bioacoustics", "2": "temporal soundscapes", "3": "complex"}


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a folder of questions, or one file of them.

    Args:
        path: The folder or file.
        audio_root: Folder that `audio_url` starts from, or that holds the clips; None: the folder of the questions.
    Raises:
        DataError: if a question cannot be used, or none of the clips exists.
    """
    examples = []
    for location, identifier, row in _questions(path):
        choices = first_value(row, ("choice", "choices"))
        if not isinstance(choices, list) or len(choices) < 2 or not row.get("question") or not row.get("audio_url"):
            raise DataError(f"{location}: has no audio_url, question and choice; is it a question of DCASE 2025?")
        clip = str(row["audio_url"])
        folder = path if path.is_dir() else path.parent
        example = Example(
            id=identifier,
            turns=question_turn([_locate(clip, folder, audio_root)], str(row["question"])),
            answer=(str(row["answer"]),) if row.get("answer") else (),
            choices=tuple(map(str, choices)),
            task=_part(row, clip),
            category=str(row.get("question_type") or ""),
            source="DCASE 2025 Task 5",
            group=PurePosixPath(clip).name,
            split="test",
        )
        if example.answer and example.answer[0] not in example.choices:
            raise DataError(f"{location}: answer {example.answer[0]!r} is none of {list(example.choices)}")
        examples.append(example)
    if not examples:
        raise DataError(f"{path}: holds no question; give the folder with one JSON file a question")
    check_audio(examples, path)
    return examples


def _questions(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Location, id and content of each question."""
    if not path.is_dir():
        for number, row in enumerate(rows_of(path), 1):
            yield f"{path}:row {number}", str(row.get("id", number)), row
        return
    for file in sorted(path.rglob("*.json")):
        try:
            row = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not JSON ({error}); download it again") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}: holds no question; give the folder with one JSON file a question")
        yield str(file), str(row.get("id") or file.stem), row


def _locate(clip: str, folder: Path, audio_root: Path | None) -> Path:
    """The clip: where `audio_url` says, from the folder of clips, of the questions, or of the data set."""
    name = clip.split("://", 1)[-1]
    roots = [audio_root] if audio_root else [folder, folder.parent, folder.parent.parent]
    candidates = [locate(name, folder / "x", root) for root in roots]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def _part(row: dict[str, Any], clip: str) -> str:
    """The part of the data set, from its field or from the path of the clip (`part1_...`)."""
    text = str(row.get("part") or row.get("subset") or clip).lower()
    number = text.partition("part")[2].lstrip("_- ")[:1]
    return PARTS.get(number, "dcase2025")


def write_predictions(run: EvalRun, path: Path, source: Path) -> int:
    """Write the submission file: the id and the text of the chosen option.

    Returns:
        Number of questions without an answer.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["question", "answer"])
    rows = list(run.first.values())
    writer.writerows([row["id"], row["answer"] or ""] for row in rows)
    write_text(path, buffer.getvalue())
    return sum(not row["answer"] for row in rows)


TASK = Task(
    name="dcase2025",
    load=load,
    score=metric.score,
    scorer=metric.SCORER,
    score_notes=metric.SCORE_NOTES,
    headline="lenient",
    write_predictions=write_predictions,
    predictions_name="predictions.csv",
    source="arXiv:2505.07365, DCASE 2025 Task 5",
    licence="MIT (questions, by their page); clips: see their sources",
    unverified="the published files; their fields are those of their page",
)
