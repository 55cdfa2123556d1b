"""Statistics equal textbook numbers, closed forms and counts by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earwise.errors import ScoringError
from earwise.evaluation.metrics import stats


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (81, 263, 0.25527, 0.36621),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(successes, n) == pytest.approx((low, high), abs=2e-5)


@given(n=st.integers(1, 3000), data=st.data())
def test_wilson_is_where_the_score_test_turns(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = stats.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(successes / n - end) == pytest.approx(stats.Z95 * math.sqrt(end * (1 - end) / n), rel=1e-6)


def test_wilson_refuses_nonsense() -> None:
    with pytest.raises(ScoringError, match="3 successes of 2"):
        stats.wilson(3, 2)


def test_accuracy_row() -> None:
    row = stats.accuracy_row([True, False, True, True])
    assert (row["accuracy"], row["n"]) == (0.75, 4)
    assert (row["low"], row["high"]) == stats.wilson(3, 4)
    assert stats.accuracy_row([]) == {"accuracy": 0.0, "n": 0, "low": 0.0, "high": 1.0}


def test_bootstrap_sign_seed_and_width() -> None:
    a = [1] * 60 + [0] * 40
    b = [1] * 40 + [0] * 60
    result = stats.paired_bootstrap(a, b, seed=1)
    assert result["difference"] == pytest.approx(0.2) and result["n"] == 100
    assert stats.paired_bootstrap(b, a, seed=1)["difference"] == pytest.approx(-0.2)
    # The differences are 20 ones and 80 zeros: their mean has standard error sqrt(.2 * .8 / 100) = .04.
    assert result["low"] == pytest.approx(0.2 - 1.96 * 0.04, abs=0.012)
    assert result["high"] == pytest.approx(0.2 + 1.96 * 0.04, abs=0.012)
    assert result["p"] < 0.001
    assert result == stats.paired_bootstrap(a, b, seed=1)
    assert result != stats.paired_bootstrap(a, b, seed=2)


def test_bootstrap_is_paired() -> None:
    """Where the same items are right, the difference is certain, however spread the values."""
    rng = np.random.default_rng(0)
    base = rng.random(50)
    result = stats.paired_bootstrap((base + 0.01).tolist(), base.tolist(), seed=0)
    assert result["low"] == pytest.approx(0.01) and result["high"] == pytest.approx(0.01) and result["p"] < 0.001


def test_bootstrap_of_equal_runs() -> None:
    result = stats.paired_bootstrap([True, False], [True, False], seed=0)
    assert (result["difference"], result["low"], result["high"], result["p"]) == (0.0, 0.0, 0.0, 1.0)
    even = stats.paired_bootstrap([1, 0] * 20, [0, 1] * 20, seed=0)
    assert even["difference"] == 0.0 and even["low"] < -0.1 and even["high"] > 0.1 and even["p"] > 0.8


def test_bootstrap_against_drawing_items() -> None:
    a, b = [1, 1, 0, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0, 0, 0]
    differences = np.subtract(a, b)
    rng = np.random.default_rng(3)
    means = differences[rng.integers(0, 8, (20_000, 8))].mean(axis=1)
    result = stats.paired_bootstrap(a, b, seed=0, draws=20_000)
    assert (result["low"], result["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-9)
    assert result["p"] == pytest.approx(2 * (means <= 0).mean(), rel=0.1)


def test_bootstrap_refuses_unpaired() -> None:
    with pytest.raises(ScoringError, match="2 and 1 values cannot be paired"):
        stats.paired_bootstrap([1, 0], [1], seed=0)
    with pytest.raises(ScoringError, match="0 and 0"):
        stats.paired_bootstrap([], [], seed=0)


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "p"),
    [(1, 0, 0, 1.0), (3, 0, 0, 0.25), (4, 0, 20, 0.125), (6, 0, 0, 1 / 32), (0, 6, 3, 1 / 32), (5, 2, 100, 0.453125)],
)
def test_few_verdicts_are_tested_exactly(wins: int, losses: int, ties: int, p: float) -> None:
    a = [True] * wins + [False] * losses + [True] * ties
    b = [False] * wins + [True] * losses + [True] * ties
    row = stats.paired_difference(a, b, seed=0)
    assert row["method"] == "exact" and (row["n"], row["wins"], row["losses"]) == (len(a), wins, losses)
    assert row["p"] == pytest.approx(p)  # binomial by hand: twice the tail of fair coins
    assert row["difference"] == pytest.approx((wins - losses) / len(a))
    assert -1 <= row["low"] <= row["difference"] <= row["high"] <= 1 and row["high"] - row["low"] > 0.01
    assert (row["low"] > 0 or row["high"] < 0) == (p < 0.05), "interval and test agree"


def test_the_interval_of_one_item_is_nearly_everything() -> None:
    row = stats.paired_difference([True], [False], seed=0)
    assert row["low"] == pytest.approx(-0.95, abs=0.01) and row["high"] == 1  # exact limits of 1 of 1: .025 to 1
    equal = stats.paired_difference([True] * 20, [True] * 20, seed=0)
    assert equal["high"] == pytest.approx(1 - 0.025 ** (1 / 20), abs=0.005) and equal["p"] == 1
    assert equal["low"] == pytest.approx(-equal["high"], abs=0.01)


def test_always_winning_is_no_certainty() -> None:
    """All of 200 items are won: resampling them shows nothing, the exact lower limit is that of 200 of 200."""
    row = stats.paired_difference([True] * 200, [False] * 200, seed=0)
    assert row["high"] == 1 and 0.94 < row["low"] < 2 * 0.025 ** (1 / 200) - 1 + 1e-3 and row["p"] < 1e-12


def test_many_items_are_resampled() -> None:
    a, b = [True] * 60 + [False] * 40, [True] * 40 + [False] * 60
    row = stats.paired_difference(a, b, seed=1)
    assert row["method"] == "bootstrap" and row["low"] == pytest.approx(0.2 - 1.96 * 0.04, abs=0.012)
    nine = stats.paired_difference([True] * 9 + [False] * 91, [False] * 100, seed=1)
    ten = stats.paired_difference([True] * 10 + [False] * 90, [False] * 100, seed=1)
    assert (nine["method"], ten["method"]) == ("exact", "bootstrap")
    assert ten["low"] > nine["low"] > 0 and nine["p"] == pytest.approx(2 / 512)
    with pytest.raises(ScoringError, match="1 and 2 verdicts"):
        stats.paired_difference([True], [True, False], seed=0)


@settings(max_examples=20, deadline=None)
@given(rate=st.floats(0.05, 0.9), lean=st.floats(0.05, 0.95), n=st.integers(2, 12), seed=st.integers(0, 10**6))
def test_small_intervals_hold_the_truth(rate: float, lean: float, n: int, seed: int) -> None:
    """Among 60 small samples at most a few miss the known difference (expected under 3, never above 10)."""
    rng, num_missed = np.random.default_rng(seed), 0
    for draw in range(60):
        outcome = rng.choice(3, size=n, p=[rate * lean, rate * (1 - lean), 1 - rate])
        row = stats.paired_difference((outcome == 0).tolist(), (outcome == 1).tolist(), seed=draw, draws=2000)
        num_missed += not row["low"] - 0.01 <= rate * (2 * lean - 1) <= row["high"] + 0.01
    assert num_missed <= 10


def test_chance_level() -> None:
    assert stats.chance_level([2, 4, 4]) == pytest.approx(1 / 3)
    assert stats.chance_level([2, 0]) == 0.25
    assert stats.chance_level([]) == 0.0


@pytest.mark.parametrize(
    ("successes", "n", "chance", "p"),
    [
        (0, 4, 0.5, 1.0),
        (4, 4, 0.5, 1 / 16),
        (3, 4, 0.5, 5 / 16),
        (1, 4, 0.25, 1 - 0.75**4),
        (2, 3, 0.25, 10 / 64),
        (1, 1, 0.0, 0.0),
        (1, 2, 1.0, 1.0),
    ],
)
def test_binomial(successes: int, n: int, chance: float, p: float) -> None:
    assert stats.binomial_p(successes, n, chance) == pytest.approx(p, rel=1e-9)


@settings(max_examples=50)
@given(n=st.integers(1, 400), chance=st.floats(0.01, 0.99), data=st.data())
def test_binomial_falls_with_success(n: int, chance: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    higher, lower = stats.binomial_p(k, n, chance), stats.binomial_p(k - 1, n, chance)
    exact = math.comb(n, k - 1) * chance ** (k - 1) * (1 - chance) ** (n - k + 1)
    assert lower - higher == pytest.approx(exact, rel=1e-6, abs=1e-9)


def test_binomial_of_many_items() -> None:
    exact = sum(math.comb(1_000, k) * 3 ** (1_000 - k) for k in range(300, 1_001)) / 4**1_000
    assert stats.binomial_p(300, 1_000, 0.25) == pytest.approx(exact, rel=1e-9)
    assert stats.binomial_p(2_700, 10_000, 0.25) == pytest.approx(2.4394670927e-06, rel=1e-6)  # by exact integers
    with pytest.raises(ScoringError):
        stats.binomial_p(3, 2, 0.5)


def test_position_bias() -> None:
    rows = stats.position_bias([0, 0, 1, 2], [0, 1, 0, None])
    counts = [
        (r["position"], r["gold"], r["gold_share"], r["chosen"], r["chosen_share"], r["accuracy"], r["n"]) for r in rows
    ]
    assert counts == [
        (0, 2, 0.5, 2, 0.5, 0.5, 2),
        (1, 1, 0.25, 1, 0.25, 0.0, 1),
        (2, 1, 0.25, 0, 0.0, 0.0, 1),
        (None, 0, 0.0, 1, 0.25, 0.0, 0),
    ]
    assert stats.position_bias([], []) == []
    with pytest.raises(ScoringError, match="1 right positions for 0"):
        stats.position_bias([0], [])
