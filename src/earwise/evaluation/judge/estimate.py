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
    panel: JudgePanel, task: Task, examples: Sequence[Example], answer_tokens: int, folder: Path, samples: int = 1
) -> list[JudgeCost]:
    """What each judge of a panel would be asked.

    Args:
        panel: The judges.
        task: The task.
        examples: The items.
        answer_tokens: Assumed length of an answer, in tokens. Every answer counts as right, so that no request that
            depends on it is missing.
        folder: Folder of the run, whose judgements are not asked again.
        samples: Completions of each item; no two of them are taken to be equal.
    """
    rows = [_expected_row(task, example, answer_tokens, number) for example in examples for number in range(samples)]
    return panel.cost(examples, rows, folder)


def _expected_row(task: Task, example: Example, answer_tokens: int, number: int) -> Row:
    """The fields of a row that a request is made of, for a right answer; `number` tells the completions apart."""
    answer = f"{task.ideal_answer(example) or 'answer'}{' ' * number}"
    return {
        "id": example.id, "permutation": 0, "status": "ok", "output": answer + WORD * answer_tokens, "answer": answer,
        "reasoning": WORD * answer_tokens, "choices": list(example.choices), "scores": None, "scorer": task.scorer,
    }  # fmt: skip
