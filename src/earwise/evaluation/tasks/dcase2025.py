"""Audio question answering of DCASE 2025, Task 5 (arXiv:2505.07365): three parts with options.

Bioacoustics, temporal soundscapes, complex questions.

Data: a hub (`PeacefulData/2025_DCASE_AudioQA_Official`; its terms have to be accepted there): a folder with one JSON
file a question, `audio_url, question, choice` (or `choices`) and, but for the evaluation set, `answer`; options and
answers carry their letters (`A. Door`), which are left out of the prompt, because options are shuffled, and stand in
the submission file again: a CSV of `question,answer` with the id and the chosen option as the file has it. One JSON
list or JSON lines of the same objects are read too. Metric: accuracy.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any

from earwise.data.readers.text_lines import read_text
from earwise.errors import DataError
from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.published.choice_file import check_audio, locate, question_turn
from earwise.evaluation.published.table_rows import first_value, rows_of
from earwise.evaluation.results import EvalRun
from earwise.evaluation.task import Task
from earwise.files import write_text
from earwise.types import Example

CHOICE_FIELDS = ("choice", "choices")
LETTERED = re.compile(r"\(?([A-Z])[.):]\s*(.+)", re.DOTALL)
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
        choices = first_value(row, CHOICE_FIELDS)
        if not isinstance(choices, list) or len(choices) < 2 or not row.get("question") or not row.get("audio_url"):
            raise DataError(f"{location}: has no audio_url, question and choice; is it a question of DCASE 2025?")
        if row.get("answer") and row["answer"] not in choices:
            raise DataError(f"{location}: answer {row['answer']!r} is none of {choices}")
        plain = plain_options(choices)
        clip = str(row["audio_url"])
        folder = path if path.is_dir() else path.parent
        example = Example(
            id=identifier,
            turns=question_turn([_locate(clip, folder, audio_root)], str(row["question"])),
            answer=(plain[row["answer"]],) if row.get("answer") else (),
            choices=tuple(plain.values()),
            task=_part(row, clip),
            category=str(row.get("question_type") or ""),
            source="DCASE 2025 Task 5",
            group=PurePosixPath(clip).name,
            split="test",
        )
        examples.append(example)
    if not examples:
        raise DataError(f"{path}: holds no question; give the folder with one JSON file a question")
    check_audio(examples, path)
    return examples


def plain_options(choices: Sequence[str]) -> dict[str, str]:
    """Options as a file has them -> their texts without letters; as they are if not all of them have theirs.

    >>> plain_options(["A. Door", "B. Dog"])
    {'A. Door': 'Door', 'B. Dog': 'Dog'}
    >>> plain_options(["B. Door", "Dog"])
    {'B. Door': 'B. Door', 'Dog': 'Dog'}
    """
    matches = [LETTERED.fullmatch(str(choice)) for choice in choices]
    texts = [match[2] for match in matches if match and match[1] == ascii_uppercase[matches.index(match)]]
    is_lettered = len(texts) == len(choices) == len(set(texts))
    return {choice: text for choice, text in zip(choices, texts if is_lettered else map(str, choices), strict=True)}


def _questions(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Location, id and content of each question."""
    if not path.is_dir():
        for number, row in enumerate(rows_of(path), 1):
            yield f"{path}:row {number}", str(row.get("id", number)), row
        return
    for file in sorted(path.rglob("*.json")):
        try:
            row = json.loads(read_text(file))
        except ValueError as error:
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
    """Write the submission file: the id and the chosen option, with its letter.

    Returns:
        Number of questions without an answer.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["question", "answer"])
    options = {
        identifier: {text: choice for choice, text in plain_options(first_value(row, CHOICE_FIELDS)).items()}
        for _, identifier, row in _questions(source)
    }
    rows = list(run.first.values())
    answers = ["" if row["choice"] is None else options[row["id"]][row["choices"][row["choice"]]] for row in rows]
    writer.writerows([row["id"], answer] for row, answer in zip(rows, answers, strict=True))
    write_text(path, buffer.getvalue())
    return answers.count("")


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
