"""Intervals where several questions share a clip: their answers are not independent, so clips are what is counted.

Between `metrics.stats`, whose intervals assume independent items, and the scores of rows. A model that mishears a clip
fails all its questions together; treating them as independent makes intervals too narrow. Where every item has a clip
of its own, everything here returns what `metrics.stats` returns.

Source: Miller 2024 (arXiv:2411.00640), section 2.2, for clustered standard errors in evaluations; the correction for
few clusters is that of statsmodels. Deviation: accuracies get Wilson's interval of the effective number of items, which
stays inside [0, 1], in place of the normal interval.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earwise.errors import ScoringError
from earwise.evaluation.metrics import stats
from earwise.evaluation.results import Row


def clip_clusters(rows: Sequence[Row]) -> list[Hashable]:
    """What each row has in common with others: its clip. A row without a hash of its clip stands alone."""
    return [row.get("audio_sha256") or ("item", number) for number, row in enumerate(rows)]


def recording_clusters(rows: Sequence[Row]) -> list[Hashable]:
    """What the recording of each row has in common with others: the speaker or source that its data set names
    (`group`), else its clip. For scores over a corpus, whose sets have few speakers and many utterances.

    Where all rows have one group, clips are the clusters: a single group has no spread to resample.
    """
    by_clip = clip_clusters(rows)
    groups: list[Hashable] = [row.get("group") or clip for row, clip in zip(rows, by_clip, strict=True)]
    return groups if len(set(groups)) > 1 else by_clip


def has_shared(clusters: Sequence[Hashable]) -> bool:
    """Whether any items share a cluster."""
    return len(set(clusters)) < len(clusters)


def cluster_standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of a mean over items that are independent only between clusters.

    >>> round(cluster_standard_error([1, 1, 0, 0], ["a", "a", "b", "b"]), 4)
    0.5

    Args:
        values: One score per item.
        clusters: The cluster of each item; at least two different ones.
    Raises:
        ScoringError: if the lists differ in length or there are fewer than two clusters.
    """
    sums, sizes = _cluster_sums(values, clusters)
    if len(sums) < 2:
        raise ScoringError(f"{len(sums)} clusters have no standard error; at least two are needed")
    residuals = sums - sizes * (sums.sum() / sizes.sum())
    variance = float(residuals @ residuals) / float(sizes.sum()) ** 2
    return math.sqrt(variance * len(sums) / (len(sums) - 1))


def mean_row(values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0) -> dict[str, float]:
    """The mean of scores with its 95 % interval, clustered where items share a cluster.

    Args:
        values: One score per item.
        clusters: The cluster of each item.
        seed: Seed of the resampling.
    Returns:
        What `stats.mean_row` returns. Where items share a cluster, also `clips` (number of clusters) and
        `design_effect`: by what factor sharing widens the variance, at least 1. The interval of accuracies is Wilson's
        with the number of items divided by it; that of other scores resamples clusters.
    """
    if not has_shared(clusters):
        return stats.mean_row(values, seed=seed)
    sums, sizes = _cluster_sums(values, clusters)
    n, mean = len(values), float(sums.sum() / sizes.sum())
    effect = design_effect(values, clusters)
    if stats.is_binary(values):
        low, high = effective_wilson(mean, n / effect)
    else:
        ratio = stats.ratio_row(sums.tolist(), sizes.tolist(), seed=seed)
        low, high = ratio["low"], ratio["high"]
    return {"accuracy": mean, "n": n, "low": low, "high": high, "clips": len(sums), "design_effect": effect}


def design_effect(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """By what factor the variance of the mean is larger than that of independent items, at least 1.

    Where all values are equal, nothing shows how alike the answers on a clip are; then clusters count as single items.
    """
    n, num_clusters = len(values), len(set(clusters))
    variance = float(np.var(np.asarray(values, np.float64))) / n
    if variance == 0 or num_clusters < 2:
        return n / num_clusters
    return max(1.0, cluster_standard_error(values, clusters) ** 2 / variance)


def effective_wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate over an effective number of items, which need not be whole.

    >>> effective_wilson(0.5, 10) == stats.wilson(5, 10)
    True
    """
    spread = stats.Z95**2 / n
    centre = (rate + spread / 2) / (1 + spread)
    half = stats.Z95 * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    return (0.0 if rate == 0 else max(0.0, centre - half)), (1.0 if rate == 1 else min(1.0, centre + half))


def paired_difference(
    after: Sequence[float], before: Sequence[float], clusters: Sequence[Hashable], *, seed: int, draws: int = 10_000
) -> dict[str, Any] | None:
    """Mean of after minus before over items that both runs answered, by resampling clusters.

    Args:
        after: One value per item.
        before: Values of the same items in the same order.
        clusters: The cluster of each item.
        seed: Seed of the resampling.
        draws: Number of resamples.
    Returns:
        `difference`, its percentile interval `low`, `high`, the two-sided `p` of no difference, `n` and `clips`; None
        where no items share a cluster, or so few clusters differ that resampling would show too little.
    """
    differences = (np.asarray(after, np.float64) - np.asarray(before, np.float64)).tolist()
    sums, sizes = _cluster_sums(differences, clusters)
    pairs, counts = np.unique(np.array([sums, sizes]).T, axis=0, return_counts=True)
    if not has_shared(clusters) or len(sums) - counts.max() < stats.FEW:
        return None
    weights = np.random.default_rng(seed).multinomial(len(sums), counts / len(sums), draws)
    totals = weights @ pairs
    means = totals[:, 0] / totals[:, 1]
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return {
        "difference": float(sums.sum() / sizes.sum()),
        "low": float(low),
        "high": float(high),
        "p": min(1.0, 2 * (tail + 1) / (draws + 1)),
        "n": len(differences),
        "clips": len(sums),
    }


def _cluster_sums(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of the values and number of items of each cluster, in the order of their first items."""
    if len(values) != len(clusters) or not values:
        raise ScoringError(f"{len(values)} values for {len(clusters)} clusters; give one of each per item")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    places = [numbers[cluster] for cluster in clusters]
    sums, sizes = np.bincount(places, np.asarray(values, np.float64)), np.bincount(places)
    return sums.astype(np.float64), sizes.astype(np.float64)
