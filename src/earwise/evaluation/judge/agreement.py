"""How far two judges agree about the same answers, and what the judges of a run gave.

Pure functions over rows that `panel.py` scored.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from earwise.evaluation.results import Row


def judge_summary(rows: Sequence[Row], headline: str) -> dict[str, Any] | None:
    """What `metrics.json` holds about the judges of a run; None if there was none.

    Args:
        rows: The rows of a run.
        headline: Name of the score that sums up.
    Returns:
        `prompt` (names of the prompts), `judges` (name -> mean of the headline score, and of how many rows), and
        `agreement` of every two of them (see `agreement`).
    """
    judged = [row["judgements"] for row in rows if row.get("judgements")]
    if not judged:
        return None
    names = [entry["judge"] for entry in judged[0]]
    values = {
        name: [entry["scores"][headline] for entries in judged for entry in entries if entry["judge"] == name]
        for name in names
    }
    return {
        "prompt": judged[0][0]["prompt"],
        "judges": {name: {"mean": sum(scores) / len(scores), "n": len(scores)} for name, scores in values.items()},
        "agreement": [
            {"judges": [a, b], **agreement(values[a], values[b])} for a, b in combinations(names, 2)
        ],
    }  # fmt: skip


def agreement(a: Sequence[float], b: Sequence[float]) -> dict[str, float | None]:
    """How far two judges agree.

    Args:
        a: One judge's score of each answer.
        b: The other's, in the same order.
    Returns:
        `n`, `equal` (share of answers with the same score), `difference` (mean of b - a), `distance` (mean of its
        size), `correlation` (Pearson's; None if a judge gave one score only) and `kappa` (`weighted_kappa`).
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    varies = bool(first.std() > 0 and second.std() > 0)
    return {
        "n": len(first),
        "equal": float(np.isclose(first, second).mean()),
        "difference": float((second - first).mean()),
        "distance": float(np.abs(second - first).mean()),
        "correlation": float(np.corrcoef(first, second)[0, 1]) if varies else None,
        "kappa": weighted_kappa(a, b),
    }


def weighted_kappa(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Cohen's kappa with quadratic weights: 1 minus the observed over the expected squared difference.

    >>> weighted_kappa([0, 1, 1, 0], [0, 1, 1, 0]), weighted_kappa([0, 1], [1, 0])
    (1.0, -1.0)

    Returns:
        Kappa; None if both judges gave one and the same score everywhere.
    Source: Cohen 1968 (Psychological Bulletin 70).
    """
    observed = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
    counts_a, counts_b = Counter(a), Counter(b)
    expected = (
        sum((x - y) ** 2 * count_x * count_y for x, count_x in counts_a.items() for y, count_y in counts_b.items())
        / len(a) ** 2
    )
    return 1 - observed / expected if expected else None
