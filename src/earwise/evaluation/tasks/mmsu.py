"""MMSU (arXiv:2506.04779): 5,000 questions about spoken language with up to four options, in 47 kinds.

Source: dingdongwang/MMSU@217d1d3 and its data set: rows `id, audio, task_name, question, choice_a` to `choice_d`,
`answer_gt` (text), `category` (Perception or Reasoning), `sub-category`. `audio` is a path here: unpack a Parquet copy
first (`earwise build convert`). Deviation: outputs that the official program leaves out of the denominator are wrong.
It is not the set of the same name inside VoiceBench.
"""

from pathlib import Path

from earwise.evaluation.metrics import mmau
from earwise.evaluation.published.choice_file import check_audio, locate, read_items
from earwise.evaluation.published.lettered_file import (
    REQUIRED_FIELDS,
    SCORE_NOTES,
    lettered_example,
    lettered_lines,
    score,
    shown_choices,
)
from earwise.evaluation.task import Task
from earwise.types import Example

INSTRUCTION = "Choose the most suitable answer from options A, B, C, and D. You must respond with only A, B, C, or D."


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read the items of MMSU as JSON or JSONL.

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is not MMSU's, or none of its clips exists.
    """
    examples = []
    for number, row in enumerate(read_items(path, (*REQUIRED_FIELDS, "id", "audio")), 1):
        name = row["audio"]["path"] if isinstance(row["audio"], dict) else row["audio"]
        example = lettered_example(
            row, shown_choices(row, number, path), locate(str(name), path, audio_root),
            identifier=str(row["id"]), task=str(row.get("category") or "mmsu"),
            category=str(row.get("task_name") or ""),
        )  # fmt: skip
        examples.append(example)
    check_audio(examples, path)
    return examples


def official_prompt(example: Example) -> str:
    """The prompt of `mmsu_inference.py`."""
    return f"{INSTRUCTION}\n\nQuestion: {example.question}\n\n{lettered_lines(example.choices)}"


TASK = Task(
    name="mmsu",
    load=load,
    score=score,
    scorer=f"mmsu-letter/1, {mmau.SCORER}",
    score_notes=SCORE_NOTES,
    reasoning_headline="lenient",
    prompts={"mmsu": official_prompt},
    default_style="mmsu",
    source="arXiv:2506.04779, dingdongwang/MMSU",
    licence="see the benchmark's repository",
)
