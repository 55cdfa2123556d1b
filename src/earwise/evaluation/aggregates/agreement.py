"""Answers under several orders of the options: how much the score moves, and how often the same option is chosen.

Pure functions over rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from earwise.evaluation.results import Row
from earwise.evaluation.scores import is_correct


@dataclass(frozen=True, slots=True)
class OrderAgreement:
    """How a run answers under several orders of the options."""

    num_orders: int
    n: int
    """Items that were asked under more than one order."""
    accuracies: tuple[float, ...]
    """Share of right answers under each order, over those items that were asked under it."""
    mean: float
    """Mean of the accuracies of the items."""
    spread: float
    """Standard deviation of the accuracies of the orders, from one order to the next."""
    always_right: float
    """Share of items that are right under every order."""
    never_right: float
    """Share of items that are right under no order."""
    same_option: float
    """Share of items for which the same option was chosen under every order; an unreadable answer is no choice."""


def order_agreement(rows: Sequence[Row], name: str) -> OrderAgreement | None:
    """Compare the answers under all orders of the options; None if no item was asked under several.

    Args:
        rows: All rows of a run.
        name: Name of the score that decides between right and wrong.
    """
    rows_by_item: dict[str, list[Row]] = {}
    for row in rows:
        if row["scores"] is not None:
            rows_by_item.setdefault(row["id"], []).append(row)
    repeated = [item_rows for item_rows in rows_by_item.values() if len(item_rows) > 1]
    if not repeated:
        return None
    flags = [[is_correct(row, name) for row in item_rows] for item_rows in repeated]
    orders = sorted({row["permutation"] for item_rows in repeated for row in item_rows})
    accuracies = []
    for order in orders:
        asked_rows = [row for item_rows in repeated for row in item_rows if row["permutation"] == order]
        accuracies.append(sum(is_correct(row, name) for row in asked_rows) / len(asked_rows))
    centre = sum(accuracies) / len(accuracies)
    n = len(repeated)
    return OrderAgreement(
        len(orders),
        n,
        tuple(accuracies),
        sum(sum(item) / len(item) for item in flags) / n,
        math.sqrt(sum((accuracy - centre) ** 2 for accuracy in accuracies) / max(1, len(accuracies) - 1)),
        sum(all(item) for item in flags) / n,
        sum(not any(item) for item in flags) / n,
        sum(_is_same_option(item_rows) for item_rows in repeated) / n,
    )


def _is_same_option(rows: Sequence[Row]) -> bool:
    """Whether one and the same option was chosen in all rows of an item."""
    chosen = {row["choices"][row["choice"]] if row["choice"] is not None else None for row in rows}
    return len(chosen) == 1 and None not in chosen
