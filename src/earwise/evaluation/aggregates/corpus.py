"""Scores that are defined over a corpus: a formula of counts that add up over items, with intervals and differences.

An error rate divides all edits by all reference words, BLEU multiplies precisions of all n-grams; neither is the mean
of its values for single items. A row holds the counts of its item under `counts`, and the task names the formula
(`Task.corpus`). Intervals resample items and apply the formula to each resample (Koehn 2004, Statistical Significance
Tests for Machine Translation Evaluation); an interval of the mean of single items would be that of another figure.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earwise.errors import ScoringError

Floats = NDArray[np.float64]
NGRAM_ORDERS = 4
DRAWS = 2000
"""Resamples for an interval, and for the test of a difference."""
BLOCK = 250
"""Resamples made at a time."""


def ratio(sums: Floats) -> Floats:
    """Sum of the first counts over the sum of the second ones, for example edits over reference words.

    Without any unit in the denominator the value is 1 if something was counted, otherwise 0.

    Args:
        sums: Sums of the two counts, `(..., 2)`.
    """
    counted, units = sums[..., 0], sums[..., 1]
    return np.where(units > 0, counted / np.maximum(units, 1e-300), (counted > 0).astype(np.float64))


def bleu(sums: Floats) -> Floats:
    """BLEU in [0, 1] with up to four words, smoothed as sacreBLEU does by default (`exp`).

    Args:
        sums: Sums of the counts, `(..., 10)`, see `metrics.translation.BleuCounts`: matched n-grams and n-grams of the
            outputs for n from 1 to 4, length of the outputs, length of the references.
    """
    output_length, reference_length = sums[..., -2], sums[..., -1]
    matched, total = sums[..., :NGRAM_ORDERS], sums[..., NGRAM_ORDERS : 2 * NGRAM_ORDERS]
    # An order without a match counts as half of the one before it: 1/2, 1/4, ... of a match.
    smoothing = 0.5 ** np.cumsum(matched == 0, axis=-1)
    precisions = np.where(matched > 0, matched, smoothing) / np.maximum(total, 1e-300)
    with np.errstate(divide="ignore"):
        brevity = np.exp(np.minimum(0.0, 1 - reference_length / np.maximum(output_length, 1e-300)))
    mean = np.exp(np.log(np.maximum(precisions, 1e-300)).mean(axis=-1))
    defined = (matched.sum(axis=-1) > 0) & (total > 0).all(axis=-1)
    return np.where(defined, brevity * mean, 0.0)


FORMULAS: Mapping[str, Callable[[Floats], Floats]] = {"ratio": ratio, "bleu": bleu}
"""Name of a formula -> value of sums of counts, for any number of leading axes."""


def corpus_row(
    counts: Sequence[Sequence[float]], groups: Sequence[str], formula: str, *, seed: int = 0
) -> dict[str, float]:
    """The value of a corpus with its 95 % interval by resampling items.

    Args:
        counts: Counts of each item.
        groups: Group of each item, for example its language; the value is the mean over the groups, because counts of
            words and of characters must not be added.
        formula: Key of `FORMULAS`.
        seed: Seed of the resampling.
    Returns:
        `accuracy` (the value; the name is that of all metrics), `n`, `low` and `high`.
    Raises:
        ScoringError: if there are no items.
    """
    values = _resampled(np.asarray(counts, np.float64)[:, None], groups, formula, seed)
    low, high = np.quantile(values[1:, 0], [0.025, 0.975])
    return {"accuracy": float(values[0, 0]), "n": len(counts), "low": float(low), "high": float(high)}


def corpus_difference(
    after: Sequence[Sequence[float]],
    before: Sequence[Sequence[float]],
    groups: Sequence[str],
    formula: str,
    *,
    seed: int,
) -> dict[str, Any]:
    """The value of one run minus that of another on the same items, by resampling items.

    Args:
        after: Counts of each item in the run in question.
        before: Counts of the same items in the run to compare with, in the same order.
        groups: As in `corpus_row`.
        formula: Key of `FORMULAS`.
        seed: Seed of the resampling.
    Returns:
        `difference`, its percentile interval `low`, `high`, the two-sided `p` of no difference, `n`, and the values
        `after` and `before`.
    Raises:
        ScoringError: if the runs differ in their number of items, or there are none.
    """
    if len(after) != len(before):
        raise ScoringError(f"{len(after)} and {len(before)} items cannot be paired; compare runs on the same items")
    stacked = np.stack([np.asarray(after, np.float64), np.asarray(before, np.float64)], axis=1)
    values = _resampled(stacked, groups, formula, seed)
    differences = values[:, 0] - values[:, 1]
    resampled = differences[1:]
    low, high = np.quantile(resampled, [0.025, 0.975])
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return {
        "difference": float(differences[0]),
        "low": float(low),
        "high": float(high),
        "p": min(1.0, 2 * (tail + 1) / (len(resampled) + 1)),
        "n": len(after),
        "after": float(values[0, 0]),
        "before": float(values[0, 1]),
    }


def crossed_values(counts: Floats, groups: Sequence[str], formula: str, *, seed: int) -> Floats:
    """Values of arms that were run with several seeds, for resamples of seeds and items together.

    Args:
        counts: Counts `(arms, seeds, items, counts)`; all arms have the same seeds and items.
        groups: Group of each item, as in `corpus_row`.
        formula: Key of `FORMULAS`.
        seed: Seed of the resampling.
    Returns:
        Values `(1 + DRAWS, arms)`, means over seeds; those of all seeds and items come first.
    """
    num_arms, num_seeds, num_items, num_counts = counts.shape
    by_item = counts.transpose(2, 0, 1, 3).reshape(num_items, num_arms * num_seeds, num_counts)
    values = _resampled(by_item, groups, formula, seed).reshape(-1, num_arms, num_seeds)
    rng = np.random.default_rng((seed, 1))
    weights = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), len(values)) / num_seeds
    weights[0] = 1 / num_seeds
    return np.einsum("das,ds->da", values, weights)


def _resampled(counts: Floats, groups: Sequence[str], formula: str, seed: int) -> Floats:
    """The value of each run for all items, and then for `DRAWS` resamples of them.

    Args:
        counts: Counts `(items, runs, counts)`.
        groups: Group of each item.
        formula: Key of `FORMULAS`.
        seed: Seed of the resampling.
    Returns:
        Values `(1 + DRAWS, runs)`; those of all items come first.
    """
    if not len(counts):
        raise ScoringError("no items; a corpus needs at least one")
    names, numbers = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    flat = np.concatenate([numbers[:, None].astype(np.float64), counts.reshape(len(counts), -1)], axis=1)
    # Items with equal counts are one outcome, so that large corpora of short items cost little.
    outcomes, frequency = np.unique(flat, axis=0, return_counts=True)
    outcome_groups, outcome_counts = outcomes[:, 0].astype(int), outcomes[:, 1:]
    rng = np.random.default_rng(seed)
    resamples = (rng.multinomial(len(counts), frequency / len(counts), BLOCK) for _ in range(DRAWS // BLOCK))
    values = []
    for weights in chain([frequency[None]], resamples):
        by_group = []
        for group in range(len(names)):
            members = outcome_groups == group
            sums = weights[:, members] @ outcome_counts[members]
            by_group.append(FORMULAS[formula](sums.reshape(len(weights), *counts.shape[1:])))
        values.append(np.mean(by_group, axis=0))
    return np.concatenate(values)
