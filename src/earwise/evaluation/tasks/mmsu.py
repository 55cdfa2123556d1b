"""MMSU (arXiv:2506.04779): 5,000 questions about spoken language with up to four options, in 47 kinds.

Source: dingdongwang/MMSU@217d1d3 and its data set: rows `id, audio, task_name, question, choice_a` to `choice_d`,
`answer_gt` (text), `category` (Perception or Reasoning), `sub-category`; as JSON, Parquet, or on a hub. Deviation:
outputs that the official program leaves out of the denominator are wrong. It is not the set of the same name inside
VoiceBench.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earwise.evaluation.metrics import mmau
from earwise.evaluation.published.lettered_file import (
    SCORE_NOTES,
    LetteredItem,
    ideal_answer,
    lettered_lines,
    read_lettered_examples,
    remarks,
    score,
)
from earwise.evaluation.published.table_rows import clip_names
from earwise.evaluation.task import Task
from earwise.types import Example

INSTRUCTION = "Choose the most suitable answer from options A, B, C, and D. You must respond with only A, B, C, or D."


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read the items of MMSU.

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is not MMSU's, or none of its clips exists.
    """

    def describe(row: Mapping[str, Any], number: int) -> LetteredItem:
        (clip,) = clip_names(row["audio"])[:1] or [""]
        return LetteredItem(str(row["id"]), clip, str(row.get("category") or "mmsu"), str(row.get("task_name") or ""))

    return read_lettered_examples(path, audio_root, ("id", "audio"), describe, "id")


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
    remarks=remarks,
    ideal_answer=ideal_answer,
    prompts={"mmsu": official_prompt},
    default_style="mmsu",
    source="arXiv:2506.04779, dingdongwang/MMSU",
    licence="see the benchmark's repository",
    unverified="the published file (ddwang2000/MMSU); rows are read as the authors' program names them",
)
