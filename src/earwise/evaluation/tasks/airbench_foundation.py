"""AIR-Bench, foundation part (arXiv:2402.07729): 19 tasks on speech, sound and music with two to four options.

Source: OFA-Sys/AIR-Bench@9832476, file `Foundation_meta.json` of the published data: a list of objects `path, question,
choice_a` to `choice_d`, `answer_gt` (text), `task_name, dataset_name, uniq_id`. A clip lies at
`{task_name}_{dataset_name}/{path}`; those of `Audio_Grounding` end in `.flac`. Deviation: an output in which the
official program finds no letter stays in the denominator, as wrong.
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

INSTRUCTION = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may only "
    "choose A or B or C or D."
)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read `Foundation_meta.json`.

    Args:
        path: The file.
        audio_root: Folder that holds a folder of clips for each task and data set; None: the file's own folder.
    Raises:
        DataError: if the file is not AIR-Bench's, or none of its clips exists.
    """

    def describe(row: Mapping[str, Any], number: int) -> LetteredItem:
        identifier = f"airbench-{row.get('uniq_id', number)}"
        return LetteredItem(identifier, clip_name(row), row["task_name"], row["dataset_name"])

    return read_lettered_examples(path, audio_root, ("task_name", "dataset_name"), describe)


def clip_name(row: Mapping[str, Any]) -> str:
    """The clip of a row: the one that a table holds, or else the file in the folder of its task and data set."""
    if row.get("audio"):
        return clip_names(row["audio"])[0]
    name = f"{row['task_name']}_{row['dataset_name']}/{row.get('path', '')}"
    return str(Path(name).with_suffix(".flac")) if row["task_name"] == "Audio_Grounding" else name


def official_prompt(example: Example) -> str:
    """The prompt of the published inference program; a letter without an option is printed as None."""
    return f"{INSTRUCTION}\n{example.question}\n{lettered_lines(example.choices, 'None')}"


TASK = Task(
    name="airbench-foundation",
    load=load,
    score=score,
    scorer=f"airbench-letter/1, {mmau.SCORER}",
    score_notes=SCORE_NOTES,
    reasoning_headline="lenient",
    remarks=remarks,
    ideal_answer=ideal_answer,
    prompts={"airbench": official_prompt},
    default_style="airbench",
    source="arXiv:2402.07729, OFA-Sys/AIR-Bench",
    licence="Apache-2.0 (repository)",
    unverified="the published files; rows are read as the authors' program names them",
)
