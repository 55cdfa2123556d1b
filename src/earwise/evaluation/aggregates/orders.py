"""Items that were asked in several orders of their options: spread of the score, and consistency of the answers.

A model that listens gives one answer whatever the order; one that prefers a position does not (arXiv:2305.17926 and
many after it).
"""

import math
from collections.abc import Sequence
from typing import Any

from earwise.evaluation.results import Row
from earwise.evaluation.scores import is_correct


def orders_summary(rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    """Accuracy over the orders of the options.

    Args:
        rows: Labelled rows in all orders.
        name: Name of the score.
    Returns:
        `k` orders, `n` items asked in more than one, `accuracy` in each order, `mean_accuracy` over items and orders,
        its `spread` (largest minus smallest accuracy of an order) and `deviation` (standard deviation over orders),
        `always_right` (share of items that are right in every order) and `consistency` (share of items with one
        answer in every order, right or wrong). None where items were asked in one order only.
    """
    orders = sorted({row["permutation"] for row in rows})
    if len(orders) < 2:
        return None
    by_item: dict[str, list[Row]] = {}
    for row in rows:
        by_item.setdefault(row["id"], []).append(row)
    repeated = {item: members for item, members in by_item.items() if len(members) > 1}
    flags = {item: [is_correct(row, name) for row in members] for item, members in repeated.items()}
    accuracy = [
        _mean([is_correct(row, name) for row in rows if row["permutation"] == order and row["id"] in repeated])
        for order in orders
    ]
    mean = _mean(accuracy)
    return {
        "k": len(orders),
        "n": len(repeated),
        "mean_accuracy": _mean([_mean(right) for right in flags.values()]),
        "always_right": _mean([all(right) for right in flags.values()]),
        "consistency": _mean([len({_answer(row) for row in members}) == 1 for members in repeated.values()]),
        "accuracy": accuracy,
        "spread": max(accuracy) - min(accuracy),
        "deviation": math.sqrt(sum((value - mean) ** 2 for value in accuracy) / (len(accuracy) - 1)),
    }


def _answer(row: Row) -> str | None:
    """The text of the option that a row chose, which is the same in every order; None: no option."""
    return None if row["choice"] is None else str(row["choices"][row["choice"]])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
