"""What a judge would be asked, before the model has answered: an estimate from answers of an assumed length."""

from collections.abc import Sequence
from pathlib import Path

from earwise.evaluation.judge.panel import JudgeCost, JudgePanel
from earwise.evaluation.results import Row
from earwise.evaluation.task import Task
from earwise.types import Example

WORD = " word"
"""Stands for a token of an answer that is not there yet."""


def expected_cost(
    panel: JudgePanel, task: Task, examples: Sequence[Example], answer_tokens: int, folder: Path
) -> list[JudgeCost]:
    """What each judge of a panel would be asked.

    Args:
        panel: The judges.
        task: The task.
        examples: The items.
        answer_tokens: Assumed length of an answer, in tokens. Every answer counts as right, so that no request that
            depends on it is missing.
        folder: Folder of the run, whose judgements are not asked again.
    """
    return panel.cost(examples, [_expected_row(task, example, answer_tokens) for example in examples], folder)


def _expected_row(task: Task, example: Example, answer_tokens: int) -> Row:
    """The fields of a row that a request is made of, for a right answer."""
    answer = task.ideal_answer(example) or "answer"
    return {
        "id": example.id, "permutation": 0, "status": "ok", "output": answer + WORD * answer_tokens, "answer": answer,
        "reasoning": WORD * answer_tokens, "choices": list(example.choices), "scores": None, "scorer": task.scorer,
    }  # fmt: skip
