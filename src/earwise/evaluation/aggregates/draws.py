"""Several completions of each item: how often one of k is right (pass@k), and how often the most common one is.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, section 2.1): of n completions c are right, and
1 - C(n-c, k) / C(n, k) is the probability that k of them, drawn without replacement, hold a right one. majority@k is
the probability that the answer given most often among k of the n is right; of several answers that are equally common
each counts in part, so that the order of the draws does not matter (self-consistency, arXiv:2203.11171). Where an
engine reports how sure it was of its tokens, votes are also weighted by the confidence of their completion (DeepConf,
arXiv:2508.15260; `algorithms/confidence.py`).
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

from earwise.algorithms.confidence import Measure, above_percentile, weighted_majority
from earwise.answers.option_texts import normalise
from earwise.evaluation.metrics import stats
from earwise.evaluation.results import Row
from earwise.evaluation.scores import is_correct

DRAWS = "draws"
"""Field of a row with its completions, where more than one was drawn."""
CONFIDENCE = "confidence"
"""Field of a completion in `DRAWS`: its confidence by each of `CONFIDENCES`, in nats; absent if the engine reports
none."""
MAX_SUBSETS = 2000
"""Subsets of the completions that are counted; where there are more, as many are drawn by seed."""
MAX_WEIGHTED_SUBSETS = 200
"""The same for weighted votes, of which there are several."""
CONFIDENCES: tuple[Measure, ...] = ("mean", "tail", "bottom_window", "min_window")
"""Confidences of a completion that a row holds and that weight votes."""
WEIGHTINGS: dict[str, tuple[Measure, float]] = {
    **{measure: (measure, 1.0) for measure in CONFIDENCES},
    "tail_top10": ("tail", 0.1),
    "bottom_window_top10": ("bottom_window", 0.1),
}
"""Weighted vote, by DeepConf's names -> the confidence that weights it, and the share of the votes that count, the most
confident ones."""


def pass_at(num_right: int, num_draws: int, k: int) -> float:
    """Probability that k of the completions of an item hold a right one.

    >>> pass_at(1, 2, 1), pass_at(1, 2, 2)
    (0.5, 1.0)

    Args:
        num_right: Number of right completions.
        num_draws: Number of completions.
        k: Number that is drawn from them, at most `num_draws`.
    """
    return 1 - comb(num_draws - num_right, k) / comb(num_draws, k)


def majority_at(answers: Sequence[str | None], right: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """Probability that the most common answer among k of the completions of an item is right.

    Args:
        answers: What each completion answers; None where nothing could be read, which is no vote.
        right: Whether each completion is right. Completions with one answer may differ in this (a score may depend on
            the form); their answer then counts as right in part.
        k: Number of completions that vote.
        seed: Seed of the subsets, where there are too many to count them all.
    """
    subsets = _subsets(len(answers), k, MAX_SUBSETS, seed)
    return sum(_vote(answers, right, subset) for subset in subsets) / len(subsets)


def weighted_majority_at(
    answers: Sequence[str | None],
    right: Sequence[bool],
    confidences: Sequence[float],
    k: int,
    *,
    share: float = 1.0,
    seed: int = 0,
) -> float:
    """Probability that the answer whose votes weigh most among k of the completions of an item is right.

    Args:
        answers: What each completion answers; None where nothing could be read, which is no vote.
        right: Whether each completion is right; see `majority_at`.
        confidences: Weight of the vote of each completion.
        k: Number of completions that vote.
        share: Share of the k votes that count, the most confident ones.
        seed: Seed of the subsets, where there are too many to count them all.
    """
    total = 0.0
    subsets = _subsets(len(answers), k, MAX_WEIGHTED_SUBSETS, seed)
    for subset in subsets:
        voters = [voter for voter in subset if answers[voter] is not None]
        if voters:
            counts = above_percentile([confidences[voter] for voter in voters], share)
            voters = [voter for voter, count in zip(voters, counts, strict=True) if count]
        winners = weighted_majority([answers[voter] for voter in voters], [confidences[voter] for voter in voters])
        flags = [[right[voter] for voter in voters if answers[voter] == winner] for winner in winners]
        total += sum(sum(row) / len(row) for row in flags) / len(flags) if flags else 0.0
    return total / len(subsets)


def _subsets(n: int, k: int, largest: int, seed: int) -> list[tuple[int, ...]]:
    """The subsets of k of n completions; where there are more than `largest`, as many drawn by seed."""
    if comb(n, k) <= largest:
        return list(combinations(range(n), k))
    rng = random.Random(seed)
    return [tuple(rng.sample(range(n), k)) for _ in range(largest)]


def _vote(answers: Sequence[str | None], right: Sequence[bool], voters: Sequence[int]) -> float:
    """Share of right completions among those of the most common answers."""
    votes: dict[str, list[bool]] = defaultdict(list)
    for voter in voters:
        answer = answers[voter]
        if answer is not None:
            votes[answer].append(right[voter])
    most = max(map(len, votes.values()), default=0)
    winners = [sum(flags) / len(flags) for flags in votes.values() if len(flags) == most]
    return sum(winners) / len(winners) if winners else 0.0


def draws_summary(rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    """pass@k and majority@k of a run, for k = 1, 2, 4, ... up to the number of draws.

    Args:
        rows: Labelled rows.
        name: Name of the score; a completion is right where it is as good as it can be.
    Returns:
        `n` items, `k` (draws of each), `mean` (share of right completions), `score` (mean of the score over all
        completions, which says more where it has degrees), and `pass_at` and `majority_at`: k -> the
        mean over items with its 95 % interval. Where rows hold confidences, `weighted_majority_at`: name of
        `WEIGHTINGS` -> the same. None if items were asked once only.
    """
    drawn = [row for row in rows if row.get(DRAWS)]
    if not drawn:
        return None
    num_draws = min(len(row[DRAWS]) for row in drawn)
    flags = [[is_correct(row | {"scores": draw["scores"]}, name) for draw in row[DRAWS]] for row in drawn]
    # An item without a completion is wrong in every draw.
    lost = [0.0] * (len(rows) - len(drawn))
    values = [value for row in drawn if (value := _mean_of_draws(row, name)) is not None]
    sizes = sorted({2**power for power in range(num_draws.bit_length()) if 2**power <= num_draws} | {num_draws})
    passes, majorities = {}, {}
    for k in sizes:
        passes[str(k)] = stats.mean_row([pass_at(sum(right), len(right), k) for right in flags] + lost)
        voted = [
            majority_at([answer_key(draw) for draw in row[DRAWS]], right, k)
            for row, right in zip(drawn, flags, strict=True)
        ]
        majorities[str(k)] = stats.mean_row(voted + lost)
    return {
        "n": len(rows),
        "k": num_draws,
        "mean": passes["1"]["accuracy"],
        "score": stats.mean_row(values + lost) if len(values) == len(drawn) else None,
        "pass_at": passes,
        "majority_at": majorities,
        **_weighted_majorities(drawn, flags, sizes, lost),
    }


def _weighted_majorities(
    drawn: Sequence[Row], flags: Sequence[Sequence[bool]], sizes: Sequence[int], lost: list[float]
) -> dict[str, Any]:
    """`weighted_majority_at` of `draws_summary`; nothing if a completion has no confidence.

    Args:
        drawn: The rows with several completions.
        flags: Whether each of their completions is right.
        sizes: Numbers of completions that vote.
        lost: A 0 for each item without a completion.
    """
    if not all(draw.get(CONFIDENCE) for row in drawn for draw in row[DRAWS]):
        return {}
    answers = [[answer_key(draw) for draw in row[DRAWS]] for row in drawn]
    weighted: dict[str, dict[str, Any]] = {}
    for weighting, (measure, share) in WEIGHTINGS.items():
        confidences = [[draw[CONFIDENCE][measure] for draw in row[DRAWS]] for row in drawn]
        weighted[weighting] = {}
        for k in sizes:
            voted = [
                weighted_majority_at(*item, k, share=share) for item in zip(answers, flags, confidences, strict=True)
            ]
            weighted[weighting][str(k)] = stats.mean_row(voted + lost)
    return {"weighted_majority_at": weighted}


def _mean_of_draws(row: Row, name: str) -> float | None:
    """Mean of a score over the completions of a row; None if one of them has no such score."""
    values = [draw["scores"][name] for draw in row[DRAWS] if name in (draw["scores"] or {})]
    return sum(values) / len(values) if len(values) == len(row[DRAWS]) else None


def answer_key(draw: Mapping[str, Any]) -> str | None:
    """What a completion votes for: the option that it names, or its answer up to case and punctuation."""
    if draw["choice"] is not None:
        return f"option {draw['choice']}"
    if draw["status"] != "ok" or not draw["answer"]:
        return None
    return normalise(draw["answer"])
