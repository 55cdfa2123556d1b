"""Orders of the options: values by hand."""

from typing import Any

import pytest

from earwise.evaluation.aggregates.agreement import order_agreement


def row(item: str, order: int, choice: int | None, *, right: bool) -> dict[str, Any]:
    """A row of two options that are in reverse under every second order."""
    choices = ["dog", "cat"][:: -1 if order % 2 else 1]
    return {
        "id": item,
        "permutation": order,
        "choices": choices,
        "choice": choice,
        "scores": {"official": float(right)},
    }


def test_mean_spread_and_consistency() -> None:
    rows = [
        row("always", 0, 0, right=True), row("always", 1, 1, right=True),
        row("first", 0, 0, right=True), row("first", 1, 0, right=False),
        row("silent", 0, None, right=False), row("silent", 1, None, right=False),
        row("same", 0, 1, right=False), row("same", 1, 0, right=False),
    ]  # fmt: skip
    result = order_agreement(rows, "official")
    assert result is not None and (result.n, result.num_orders, result.accuracies) == (4, 2, (0.5, 0.25))
    assert result.mean == 0.375 and result.spread == pytest.approx(0.125 * 2**0.5)
    assert (result.always_right, result.never_right, result.same_option) == (0.25, 0.5, 0.5)


def test_one_order_has_no_agreement() -> None:
    assert order_agreement([row("a", 0, 0, right=True)], "official") is None
