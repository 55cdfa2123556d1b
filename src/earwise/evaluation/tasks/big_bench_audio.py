"""Big Bench Audio (Artificial Analysis, 2024; MIT): 1,000 spoken questions of BIG-bench Hard in four categories.

Data: a hub (`ArtificialAnalysis/big_bench_audio`), as Parquet or as `metadata.jsonl` with the folder `data`: columns
`id, category, official_answer, file_name` and the clip under `audio`. Answers are valid or invalid, yes or no, or a
number. `exact` reads the one possible answer that the output gives (`metrics/voicebench/yes_no.py`); of a number the
last one counts. The publisher lets a model compare output and answer: give one with `--judge`, its verdict is `judge`.
"""

from collections.abc import Sequence
from pathlib import Path

from earwise.answers import extract_answer
from earwise.evaluation.judge.judging import JudgePrompt, JudgeRequest, Judging, Values, request
from earwise.evaluation.judge.replies import final_text
from earwise.evaluation.metrics.voicebench.yes_no import last_number, plain, short_answer
from earwise.evaluation.published.choice_file import check_audio, locate, question_turn, read_items
from earwise.evaluation.published.table_rows import clip_names, first_value
from earwise.evaluation.results import Row
from earwise.evaluation.task import Task
from earwise.types import Example, Score

ANSWERS = {"formal_fallacies": ("valid", "invalid"), "navigate": ("yes", "no"), "web_of_lies": ("yes", "no")}
"""Category -> its possible answers; the fourth one asks for numbers."""
PROMPT = JudgePrompt(
    "big-bench-audio/1",
    """A question with one right answer was asked and answered.

Right answer: {reference}
Answer to check: {response}

Does the answer to check come to the right answer? Reply with CORRECT or INCORRECT alone.""",
    max_tokens=16,
)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read `metadata.jsonl`, Parquet, or a name on a hub.

    Args:
        path: The file, or the name.
        audio_root: Folder that holds `data/` or the clips themselves; None: the file's own folder.
    Raises:
        DataError: if the file is not Big Bench Audio's, or none of its clips exists.
    """
    examples = []
    for number, row in enumerate(read_items(path, ("category", "official_answer"), ""), 1):
        names = clip_names(first_value(row, ("audio", "file_name")))
        clips = [locate(name, path, audio_root) for name in names]
        example = Example(
            id=f"big-bench-audio-{row.get('id', number)}",
            turns=question_turn(clips, ""),
            answer=(str(row["official_answer"]),),
            task=str(row["category"]),
            category=str(row["category"]),
            source="Big Bench Audio",
            group=" ".join(names),
            split="test",
        )
        examples.append(example)
    check_audio(examples, path)
    return examples


def score(example: Example, completion: str) -> Score:
    """Whether the answer that the output gives is the right one."""
    text = extract_answer(completion) or ""
    possible = ANSWERS.get(example.task)
    answer = last_number(text) if possible is None else short_answer(text, possible)
    right = answer is not None and any(plain(answer) == plain(gold) for gold in example.answer)
    if answer is None:
        return Score({"exact": 0.0}, "unparsed", None, f"the output gives no answer: {text[:80]!r}")
    return Score({"exact": float(right)}, "ok", answer)


def requests(example: Example, row: Row) -> Sequence[JudgeRequest]:
    """One request about the whole output."""
    return [request(row, "verdict", PROMPT, {"reference": example.answer[0], "response": row["output"].strip()})]


def read(example: Example, part: str, text: str) -> float | None:
    """1 for correct, 0 for incorrect; None for anything else."""
    return {"correct": 1.0, "incorrect": 0.0}.get(final_text(text).strip(" .!\n").lower())


def judge_scores(example: Example, row: Row, values: Values) -> dict[str, float]:
    """The verdict; 0 for an empty output."""
    return {"judge": values.get("verdict", 0.0)}


JUDGING = Judging(
    prompts=(PROMPT,),
    score_notes={"judge": "the judge finds the right answer in the output"},
    headline="judge",
    requests=requests,
    read=read,
    score=judge_scores,
    sample_reply=lambda example, part, good: "CORRECT" if good else "INCORRECT",
    alone=False,
)
TASK = Task(
    name="big-bench-audio",
    load=load,
    score=score,
    scorer="big-bench-audio/1",
    score_notes={"exact": "the one possible answer that the output gives is the right one"},
    headline="exact",
    judging=JUDGING,
    default_style="open",
    max_new_tokens=512,
    source="Artificial Analysis, Big Bench Audio; BIG-bench Hard (arXiv:2210.09261)",
    licence="MIT",
    unverified="the published files; their columns are those of their page",
)
