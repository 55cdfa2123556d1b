"""Scores that are defined over a corpus: a formula of counts that add up over items, with intervals and differences.

An error rate divides all edits by all reference words, BLEU multiplies precisions of all n-grams; neither is the mean
of its values for single items. A row holds the counts of its item under `counts`, and the task names the formula
(`Task.corpus`). Intervals resample items and apply the formula to each resample (Koehn 2004, Statistical Significance
Tests for Machine Translation Evaluation); an interval of the mean of single items would be that of another figure.
Where items share a speaker or a clip, whole speakers or clips are resampled (Bisani and Ney 2004, Bootstrap Estimates
for Confidence Intervals in ASR Performance Evaluation, section 3: utterances of one speaker are not independent).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earwise.errors import ScoringError
from earwise.evaluation.metrics.captions import SMALL, TINY
from earwise.evaluation.metrics.java.meteor import meteor

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


def caption_bleu(sums: Floats) -> Floats:
    """BLEU-4 in [0, 1] as the COCO tool kit smooths it, see `metrics.captions.bleu`.

    Args:
        sums: Sums of the counts, `(..., 10)`, see `metrics.captions.bleu_counts`.
    """
    ratio = (sums[..., -2] + TINY) / (sums[..., -1] + SMALL)
    matched, total = sums[..., :NGRAM_ORDERS], sums[..., NGRAM_ORDERS : 2 * NGRAM_ORDERS]
    mean = np.exp(np.log((matched + TINY) / (total + SMALL)).mean(axis=-1))
    return np.asarray(mean * np.exp(np.minimum(0.0, 1 - 1 / ratio)))


FORMULAS: Mapping[str, Callable[[Floats], Floats]] = {
    "ratio": ratio, "bleu": bleu, "caption_bleu": caption_bleu, "meteor": meteor,
}  # fmt: skip
"""Name of a formula -> value of sums of counts, for any number of leading axes."""


def corpus_row(
    counts: Sequence[Sequence[float]],
    groups: Sequence[str],
    formula: str,
    *,
    clusters: Sequence[Hashable] = (),
    seed: int = 0,
) -> dict[str, float]:
    """The value of a corpus with its 95 % interval by resampling items, or clusters where items share them.

    Args:
        counts: Counts of each item.
        groups: Group of each item, for example its language; the value is the mean over the groups, because counts of
            words and of characters must not be added.
        formula: Key of `FORMULAS`.
        clusters: The cluster of each item, for example its speaker; empty: all items are independent.
        seed: Seed of the resampling.
    Returns:
        `accuracy` (the value; the name is that of all metrics), `n`, `low` and `high`; where items share clusters also
        `clusters`, their number.
    Raises:
        ScoringError: if there are no items.
    """
    values = _resampled(np.asarray(counts, np.float64)[:, None], groups, formula, seed, clusters)
    low, high = np.quantile(values[1:, 0], [0.025, 0.975])
    row = {"accuracy": float(values[0, 0]), "n": len(counts), "low": float(low), "high": float(high)}
    return row | _number_of_clusters(clusters)


def corpus_difference(
    after: Sequence[Sequence[float]],
    before: Sequence[Sequence[float]],
    groups: Sequence[str],
    formula: str,
    *,
    clusters: Sequence[Hashable] = (),
    seed: int,
) -> dict[str, Any]:
    """The value of one run minus that of another on the same items, by resampling items or clusters.

    Args:
        after: Counts of each item in the run in question.
        before: Counts of the same items in the run to compare with, in the same order.
        groups: As in `corpus_row`.
        formula: Key of `FORMULAS`.
        clusters: As in `corpus_row`.
        seed: Seed of the resampling.
    Returns:
        `difference`, its percentile interval `low`, `high`, the two-sided `p` of no difference, `n`, the values `after`
        and `before`, and `clusters` as in `corpus_row`.
    Raises:
        ScoringError: if the runs differ in their number of items, or there are none.
    """
    if len(after) != len(before):
        raise ScoringError(f"{len(after)} and {len(before)} items cannot be paired; compare runs on the same items")
    stacked = np.stack([np.asarray(after, np.float64), np.asarray(before, np.float64)], axis=1)
    values = _resampled(stacked, groups, formula, seed, clusters)
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
    } | _number_of_clusters(clusters)


def crossed_values(
    counts: Floats, groups: Sequence[str], formula: str, *, clusters: Sequence[Hashable] = (), seed: int
) -> Floats:
    """Values of arms that were run with several seeds, for resamples of seeds and of items or clusters together.

    Args:
        counts: Counts `(arms, seeds, items, counts)`; all arms have the same seeds and items.
        groups: Group of each item, as in `corpus_row`.
        formula: Key of `FORMULAS`.
        clusters: As in `corpus_row`.
        seed: Seed of the resampling.
    Returns:
        Values `(1 + DRAWS, arms)`, means over seeds; those of all seeds and items come first.
    """
    num_arms, num_seeds, num_items, num_counts = counts.shape
    by_item = counts.transpose(2, 0, 1, 3).reshape(num_items, num_arms * num_seeds, num_counts)
    values = _resampled(by_item, groups, formula, seed, clusters).reshape(-1, num_arms, num_seeds)
    rng = np.random.default_rng((seed, 1))
    weights = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), len(values)) / num_seeds
    weights[0] = 1 / num_seeds
    return np.einsum("das,ds->da", values, weights)


def _number_of_clusters(clusters: Sequence[Hashable]) -> dict[str, float]:
    """`clusters`, the number of clusters that are resampled; empty where items are."""
    num_clusters = len(set(clusters))
    return {"clusters": num_clusters} if num_clusters < len(clusters) else {}


def _resampled(
    counts: Floats, groups: Sequence[str], formula: str, seed: int, clusters: Sequence[Hashable] = ()
) -> Floats:
    """The value of each run for all items, and then for `DRAWS` resamples of them.

    Args:
        counts: Counts `(items, runs, counts)`.
        groups: Group of each item.
        formula: Key of `FORMULAS`.
        seed: Seed of the resampling.
        clusters: Cluster of each item; empty: each item by itself.
    Returns:
        Values `(1 + DRAWS, runs)`; those of all items come first.
    """
    if not len(counts):
        raise ScoringError("no items; a corpus needs at least one")
    names, numbers = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if _number_of_clusters(clusters):
        outcomes, owners, frequency = _summed_clusters(counts, numbers, clusters)
    else:
        # Items with equal counts are one outcome, so that large corpora of short items cost little.
        flat = np.concatenate([numbers[:, None].astype(np.float64), counts.reshape(len(counts), -1)], axis=1)
        outcomes, frequency = np.unique(flat, axis=0, return_counts=True)
        owners = np.arange(len(outcomes))
    outcome_groups, outcome_counts = outcomes[:, 0].astype(int), outcomes[:, 1:]
    num_units = int(frequency.sum())
    rng = np.random.default_rng(seed)
    resamples = (rng.multinomial(num_units, frequency / num_units, BLOCK) for _ in range(DRAWS // BLOCK))
    values = []
    for weights in chain([frequency[None]], resamples):
        by_group = []
        for group in range(len(names)):
            members = outcome_groups == group
            sums = weights[:, owners[members]] @ outcome_counts[members]
            by_group.append(FORMULAS[formula](sums.reshape(len(weights), *counts.shape[1:])))
        values.append(np.mean(by_group, axis=0))
    return np.concatenate(values)


def _summed_clusters(
    counts: Floats, group_numbers: NDArray[np.int64], clusters: Sequence[Hashable]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """The counts of each cluster, apart for each group that it has items of.

    Args:
        counts: Counts `(items, runs, counts)`.
        group_numbers: Number of the group of each item.
        clusters: Cluster of each item.
    Returns:
        Number of the group and counts of each pair of cluster and group, flat; the number of each pair's cluster; and
        how often each cluster occurs, which is once.
    """
    cluster_numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    owners = np.array([cluster_numbers[cluster] for cluster in clusters])
    pairs, places = np.unique(np.stack([owners, group_numbers], axis=1), axis=0, return_inverse=True)
    sums = np.zeros((len(pairs), counts[0].size))
    np.add.at(sums, places.reshape(-1), counts.reshape(len(counts), -1))
    return np.concatenate([pairs[:, 1:], sums], axis=1), pairs[:, 0], np.ones(len(cluster_numbers), np.int64)
