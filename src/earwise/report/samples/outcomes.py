"""What became of an item: right, wrong or in between in one run, gained or lost between two.

Part of `earwise.report`.
"""

import random
from collections.abc import Sequence

from earwise.evaluation.results import EvalRun, Row
from earwise.evaluation.scores import is_correct, lower_is_better

OUTCOMES = {
    "gained": "worse before, better after",
    "lost": "better before, worse after",
    "right": "right",
    "partly": "between right and wrong",
    "wrong": "wrong",
    "unlabelled": "without a gold answer",
}
"""Outcome of an item, by the first and the last run of a page."""


def grade(row: Row, name: str) -> str:
    """`right`, `partly` or `wrong` by the score `name`; `unlabelled` without a gold answer."""
    if row["scores"] is None:
        return "unlabelled"
    if is_correct(row, name):
        return "right"
    value = row["scores"].get(name, 0.0)
    return "partly" if 0 < value < 1 else "wrong"


def outcomes(runs: Sequence[EvalRun], name: str) -> dict[str, str]:
    """Which of `OUTCOMES` each item of the last run has in the first and the last run.

    Args:
        runs: The runs of the page, before first, after last.
        name: Name of the score that decides.
    Returns:
        Outcome by item id, in the order of the last run.
    """
    before, after = runs[0].first, runs[-1].first
    shared = shared_items(runs[0], runs[-1])
    return {item: _outcome(before[item] if item in shared else None, row, name) for item, row in after.items()}


def shared_items(before: EvalRun, after: EvalRun) -> set[str]:
    """Ids of the items that both runs were asked: one id, one question, one gold answer."""
    rows_before, rows_after = before.first, after.first
    return {
        item
        for item in rows_before.keys() & rows_after.keys()
        if all(rows_before[item][field] == rows_after[item][field] for field in ("question", "gold"))
    }


def _outcome(before: Row | None, after: Row, name: str) -> str:
    change = 0.0 if before is None else _goodness(after, name) - _goodness(before, name)
    return "gained" if change > 0 else "lost" if change < 0 else grade(after, name)


def draw_items(runs: Sequence[EvalRun], name: str, seed: int, limit: int | None = None) -> list[tuple[str, str]]:
    """Put items into a random order in which every outcome that occurs has its turn.

    Args:
        runs: The runs of the page.
        name: Name of the score that decides the outcome.
        seed: Seed of the random order.
        limit: Number of items at most; None: all.
    Returns:
        Pairs `(item id, outcome)`.
    """
    items_by_outcome: dict[str, list[str]] = {result: [] for result in OUTCOMES}
    for item, result in outcomes(runs, name).items():
        items_by_outcome[result].append(item)
    rng = random.Random(seed)
    for items in items_by_outcome.values():
        rng.shuffle(items)
    drawn: list[tuple[str, str]] = []
    while any(items_by_outcome.values()):
        drawn += [(items.pop(), result) for result, items in items_by_outcome.items() if items]
    return drawn if limit is None else drawn[:limit]


def _goodness(row: Row, name: str) -> float:
    """The score of a row, negative where a lower one is better; 0 without a gold answer."""
    if row["scores"] is None:
        return 0.0
    value = float(row["scores"].get(name, 0.0))
    return -value if lower_is_better(row, name) else value
