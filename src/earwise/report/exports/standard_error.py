"""The standard error of a score, which other programs store in place of an interval.

Part of `earwise.report`.
"""

import math
from collections.abc import Sequence

import numpy as np

from earwise.evaluation.aggregates.clusters import clip_clusters, cluster_standard_error, has_shared
from earwise.evaluation.results import Row


def standard_error(rows: Sequence[Row], name: str, value: float) -> float | None:
    """Standard error of the mean of a score, clustered where rows share clips.

    Args:
        rows: Labelled rows.
        name: Name of the score.
        value: The metric. If it is not the mean of the rows' values (BLEU, error rates), there is none.
    Returns:
        The standard error; None for fewer than two rows or clips, and for figures of the corpus.
    """
    values, clusters = [float(row["scores"][name]) for row in rows], clip_clusters(rows)
    if len(set(clusters)) < 2 or not math.isclose(sum(values) / len(values), value, abs_tol=1e-9):
        return None
    if has_shared(clusters):
        return cluster_standard_error(values, clusters)
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
