"""MMAR-Rubrics (arXiv:2505.13032, Interspeech 2026 challenge arXiv:2602.14224): the reasoning behind right answers.

Data: an MMAR file with the field `rubric`, a list of points with the scores that each may get (`choices`). A wrong
answer scores 0 without a judge. For a right one the judge reads the item's rubric and the model's reasoning, five
times; each reading is the share of the points that are possible, and the score is the mean of the middle three.

Source: ddlBoJack/MMAR@3bce090, code/evaluation_rubrics.py; the arithmetic is compared case by case (`tests/golden`).
Deviations: the answer is the one that is read from the output (the authors' program compares whole texts, so that a
letter alone is wrong), temperature 0, and the wording of the prompt is ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.judge.judging import JudgePrompt, JudgeRequest, Judging, Values, request
from earwise.evaluation.metrics import mmau as metric
from earwise.evaluation.metrics.judgements import middle_mean, read_rubric_points
from earwise.evaluation.published.choice_file import read_choice_examples
from earwise.evaluation.results import Row
from earwise.evaluation.tasks import mmar
from earwise.types import Example

RUNS = 5
SEED = 42
"""Seed of the authors' program, which is sent along."""
FIELDS = replace(mmar.FIELDS, left_out=("thinking", "cue"))
PROMPT = JudgePrompt(
    "mmar-rubric/1",
    """A model answered a question about a recording and explained how it came to its answer. The answer is right; \
judge the explanation only, point by point.

Question: {question}
Options: {choices}
Right answer: {answer}
The model's answer: {prediction}
The model's explanation: {reasoning}

Rubric, a JSON list whose points name the scores that they allow:
{rubric}

Reply with a JSON list and nothing else: one object for each point of the rubric, in the same order, with "name", \
"score" (one of the allowed scores) and "justification" (one sentence).""",
    max_tokens=1024,
)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read an MMAR file with rubrics; see `mmar.load`.

    Raises:
        DataError: if the file is not MMAR's, an item has no usable rubric, or no clip exists.
    """
    required = (*mmar.REQUIRED_FIELDS, "rubric")
    examples = read_choice_examples(path, audio_root, FIELDS, mmar.NAME, required=required, edition=mmar.version)
    return [replace(example, meta={**example.meta, "rubric": _rubric(example, path)}) for example in examples]


def _rubric(example: Example, path: Path) -> list[dict[str, Any]]:
    """The rubric of an item, which tables hold as text.

    Raises:
        DataError: if it is no list of points with allowed scores.
    """
    rubric = example.meta["rubric"]
    try:
        points = json.loads(rubric) if isinstance(rubric, str) else rubric
        is_usable = bool(points) and all(
            point["choices"] and all(isinstance(choice, int | float) for choice in point["choices"]) for point in points
        )
    except (ValueError, TypeError, KeyError):
        is_usable = False
    if not is_usable:
        raise DataError(f"{path}: item {example.id!r}: rubric is no list of points, each with its choices of scores")
    return list(points)


def is_right(answer: str | None, gold: Sequence[str], choices: Sequence[str]) -> bool:
    """Whether the answer that was read is right by MMAR's matcher."""
    return any(metric.string_match(text, answer or "", choices) for text in gold)


def requests(example: Example, row: Row) -> Sequence[JudgeRequest]:
    """Five readings of the reasoning behind a right answer; none for a wrong one."""
    if not is_right(row["answer"], example.answer, row["choices"]):
        return []
    fields = {
        "question": example.question, "choices": json.dumps(row["choices"], ensure_ascii=False),
        "answer": example.answer[0], "prediction": str(row["answer"]), "reasoning": str(row["reasoning"] or "(none)"),
        "rubric": json.dumps(example.meta["rubric"], ensure_ascii=False, indent=1),
    }  # fmt: skip
    return [request(row, f"run {number}", PROMPT, fields, SEED) for number in range(1, RUNS + 1)]


def judge_scores(example: Example, row: Row, values: Values) -> dict[str, float]:
    """The mean of the middle three readings, and whether the answer is right."""
    right = is_right(row["answer"], example.answer, row["choices"]) and row["status"] != "error"
    return {"rubrics": middle_mean(list(values.values())) if values else 0.0, "accuracy": float(right)}


def sample_reply(example: Example, part: str, good: bool) -> str:
    """A reply with the best, or the worst, score for every point."""
    points: Sequence[Mapping[str, Any]] = example.meta["rubric"]
    best = max if good else min
    return json.dumps([{"name": point.get("name", ""), "score": best(point["choices"])} for point in points])


JUDGING = Judging(
    prompts=(PROMPT,),
    score_notes={
        "rubrics": "share of the rubric's points that the judge gives the reasoning of a right answer, middle three of "
        "five readings; 0 for a wrong answer",
        "accuracy": "the answer that was read is right by MMAR's matcher",
    },
    headline="rubrics",
    requests=requests,
    read=lambda example, part, text: read_rubric_points(text, example.meta["rubric"]),
    score=judge_scores,
    sample_reply=sample_reply,
)
TASK = replace(
    mmar.TASK,
    name="mmar-rubrics",
    load=load,
    scorer=f"mmar-rubrics/1, {metric.SCORER}",
    score_notes=JUDGING.score_notes,
    headline="rubrics",
    reasoning_headline=None,
    judging=JUDGING,
    write_predictions=None,
    default_style="think",
    source="arXiv:2505.13032, arXiv:2602.14224, ddlBoJack/MMAR",
)
