"""What a task's scorer gives to models whose answers are known: a check of the scorer before any model is measured.

Five models answer every item without hearing anything: one writes the gold answer, one the gold answer inside the tags
of the style `answer`, one nothing, one always the first option, and one a sentence about something else. A sound task
gives the first all points, the third none, and counts every item for all of them. Where a judge scores, an ideal one
stands in for it, which gives the first two models the best reply and the others the worst.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from earwise.engine.request_pipeline import RequestAudio, RequestResult
from earwise.evaluation.items import build_items
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.results import Row
from earwise.evaluation.rows import sample_row
from earwise.evaluation.scores import Metric, headline
from earwise.evaluation.summary import summarise
from earwise.evaluation.task import Task
from earwise.types import Completion, Example

NO_AUDIO = RequestAudio((), (), False)
WRONG_FORM = "Here is what I think about the recording: it was made on a Tuesday."


def _ideal_answer(task: Task, example: Example) -> str:
    """The answer of a perfect model, as the task says."""
    return task.ideal_answer(example)


def _tagged_answer(task: Task, example: Example) -> str:
    """The same in the tags of the style `answer`."""
    text = task.ideal_answer(example)
    return f"<answer>{text}</answer>" if text else ""


def _first_option(task: Task, example: Example) -> str:
    """The first option, in the form that the task reads: what would be ideal if it was the right one."""
    if not example.choices:
        return "yes"
    return task.ideal_answer(replace(example, answer=example.choices[:1]))


MODELS: dict[str, Callable[[Task, Example], str]] = {
    "perfect": _ideal_answer,
    "perfect, tagged": _tagged_answer,
    "empty": lambda task, example: "",
    "first option": _first_option,
    "wrong form": lambda task, example: WRONG_FORM,
}
"""Name -> answer to an item of a task, whose options are in the order that a model would see."""
GOOD_MODELS = ("perfect", "perfect, tagged")


def audit(task: Task, examples: Sequence[Example], options: EvalOptions | None = None) -> dict[str, dict[str, Any]]:
    """Score the answers of `MODELS`.

    Args:
        task: The task.
        examples: Its items.
        options: Prompt style, seed and order of the options; None takes the defaults.
    Returns:
        For each model: `n`, `headline` (value of the task's headline score; None if no item has a gold answer) and
        `metrics` (all of them).
    Raises:
        ConfigError: if the options do not fit the task.
        DataError: if the items cannot be evaluated.
    """
    options = options or EvalOptions()
    style = task.style_of(options.style)
    items = build_items(examples, options, None, task)
    results = {}
    for name, answer in MODELS.items():
        rows: list[Row] = []
        for item in items:
            text = answer(task, item.example)
            result = RequestResult(item.request, (Completion(text),), None, NO_AUDIO)
            common = {"seconds": 0.0}
            row = sample_row(item, result, task, EvalOptions(style=style), Path(), False) | common
            rows.append(_judged(task, item.example, row, is_good=name in GOOD_MODELS))
        if task.add_scores is not None:
            rows = task.add_scores(rows)
        settings = {"model": name, "revision": None, "style": style, "control": None, "scorer": task.scorer}
        metrics = summarise(rows, settings, task)
        score = headline(metrics)
        scored: dict[str, Metric] = metrics["accuracy"] or {}
        results[name] = {"n": metrics["n"], "headline": score.value if score else None, "metrics": scored}
    return results


def _judged(task: Task, example: Example, row: Row, *, is_good: bool) -> Row:
    """The row with the scores that a judge would give it who knows the good answers; of a task that needs a judge."""
    if not task.waits_for_judge(example) or task.judging is None:
        return row
    judging = task.judging
    requests = judging.requests(example, row) if row["output"].strip() else []
    values = {
        request.part: judging.read(example, request.part, judging.sample_reply(example, request.part, is_good))
        for request in requests
    }
    return row | {"scores": judging.score(example, row, values)}
