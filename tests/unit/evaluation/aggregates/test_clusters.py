"""Clustered intervals: standard errors of statsmodels and inspect, values by hand, and what does not change without
shared clips."""

import numpy as np
import pytest

from earwise.errors import ScoringError
from earwise.evaluation.aggregates import clusters
from earwise.evaluation.metrics import stats

GRADED = (
    [
        0.665, 0.172, 0.223, 0.865, 0.511, 0.556, 0.409, 0.627, 0.132, 0.426, 0.516, 0.559, 0.187, 0.089,
        0.048, 0.465, 0.611, 0.572, 0.34, 0.092, 0.491, 0.225, 0.29, 0.385, 0.593, 0.059, 0.099, 0.905,
        0.502, 0.066, 0.72, 0.845, 0.3, 0.598, 0.213, 0.135, 0.793, 0.658, 0.164, 0.463,
    ],
    [
        0, 4, 3, 7, 6, 3, 0, 5, 2, 6, 7, 3, 8, 4, 4, 6, 7, 8, 8, 1, 3, 8, 2, 0, 5, 6, 6, 7, 5, 1, 7, 3, 7,
        7, 8, 0, 7, 5, 4, 7,
    ],
)  # fmt: skip
BINARY = (
    [0, 1, 0, 1, 1, 1, 1, 1, 0, 0],
    [3, 0, 3, 2, 0, 3, 3, 4, 4, 3],
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "standard_error"),
    [(GRADED, 0.0732302004450798), (BINARY, 0.15663120165960967)],
    ids=["graded", "binary"],
)
def test_standard_errors_are_those_of_statsmodels_and_inspect(
    data: tuple[list[float], list[int]], standard_error: float
) -> None:
    """Values of statsmodels 0.15.0 (OLS on a constant, cov_type="cluster") and of inspect_ai 0.3.285
    (`stderr(cluster=...)`), which agree to the last digit."""
    assert clusters.cluster_standard_error(*data) == pytest.approx(standard_error, rel=1e-12)


def test_ten_questions_on_one_clip_are_not_ten_clips() -> None:
    values, shared = [1.0] * 50 + [0.0] * 50, [number // 10 for number in range(100)]
    row = clusters.mean_row(values, shared)
    # Ten clips, five of them right: as uncertain as five of ten items, but for the correction 10 / 9.
    assert row["design_effect"] == pytest.approx(100 / 9) and row["clips"] == 10
    assert (row["low"], row["high"]) == pytest.approx(clusters.effective_wilson(0.5, 9))
    assert row["high"] - row["low"] > 2.5 * (lambda ends: ends[1] - ends[0])(stats.wilson(50, 100))


def test_items_with_clips_of_their_own_change_nothing() -> None:
    for values in ([1.0, 0.0, 1.0], [0.25, 0.5, 0.75]):
        assert clusters.mean_row(values, [1, 2, 3]) == stats.mean_row(values)
    assert clusters.paired_difference([1, 0], [0, 0], [1, 2], seed=0) is None
    rows = [{"audio_sha256": ""}, {"audio_sha256": ""}, {}]
    assert not clusters.has_shared(clusters.clip_clusters(rows))


def test_equal_answers_count_clips_and_sharing_never_narrows() -> None:
    row = clusters.mean_row([1.0] * 40, [number // 4 for number in range(40)])
    assert (row["low"], row["high"]) == pytest.approx(stats.wilson(10, 10))
    opposed = clusters.mean_row([1.0, 0.0] * 20, [number // 2 for number in range(40)])
    assert opposed["design_effect"] == 1 and (opposed["low"], opposed["high"]) == pytest.approx(stats.wilson(20, 40))


def test_the_interval_covers_the_truth_where_the_independent_one_does_not() -> None:
    """300 sets of 30 clips with 8 questions each: a clip is heard (90 % right) or misheard (30 % right)."""
    rng, shared = np.random.default_rng(0), [number // 8 for number in range(240)]
    covered = independent = 0
    for _ in range(300):
        rates = rng.choice([0.9, 0.3], 30)
        values = (rng.random(240) < np.repeat(rates, 8)).astype(float).tolist()
        row, plain = clusters.mean_row(values, shared), stats.mean_row(values)
        covered += row["low"] <= 0.6 <= row["high"]
        independent += plain["low"] <= 0.6 <= plain["high"]
    assert 0.92 <= covered / 300 <= 0.98 and independent / 300 < 0.8


def test_paired_differences_resample_clips() -> None:
    rng = np.random.default_rng(1)
    gains = np.repeat(rng.choice([-0.5, 0.0, 1.0], 40, p=[0.2, 0.3, 0.5]), 5)
    shared = [number // 5 for number in range(200)]
    result = clusters.paired_difference(gains.tolist(), [0.0] * 200, shared, seed=0)
    assert result is not None and result["clips"] == 40 and result["difference"] == pytest.approx(gains.mean())
    half = 1.96 * clusters.cluster_standard_error(gains.tolist(), shared)
    assert (result["low"], result["high"]) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.03)
    item_interval = stats.paired_bootstrap(gains.tolist(), [0.0] * 200, seed=0)
    assert result["high"] - result["low"] > 1.8 * (item_interval["high"] - item_interval["low"])


def test_a_single_clip_and_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ScoringError, match="at least two"):
        clusters.cluster_standard_error([1, 0], ["a", "a"])
    with pytest.raises(ScoringError, match="one of each"):
        clusters.cluster_standard_error([1, 0], ["a"])
    assert clusters.mean_row([1.0, 0.0], ["a", "a"])["clips"] == 1
