"""Agreement of two judges, by hand and against definitions written out."""

import numpy as np
import pytest

from earwise.evaluation.judge.agreement import agreement, judge_summary, weighted_kappa


def test_by_hand() -> None:
    result = agreement([0.2, 0.4, 1.0, 1.0], [0.2, 0.6, 1.0, 0.8])
    assert (result["n"], result["equal"]) == (4, 0.5)
    assert result["difference"] == pytest.approx(0.0) and result["distance"] == pytest.approx(0.1)
    assert result["correlation"] == pytest.approx(np.corrcoef([1, 2, 5, 5], [1, 3, 5, 4])[0, 1])


def test_kappa_is_one_minus_weighted_disagreement() -> None:
    """Against the matrix form: the observed table of scores and the product of its margins."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 6, 50), rng.integers(1, 6, 50)
    observed = np.zeros((5, 5))
    for x, y in zip(a, b, strict=True):
        observed[x - 1, y - 1] += 1 / 50
    expected = np.outer(observed.sum(1), observed.sum(0))
    weights = (np.arange(5)[:, None] - np.arange(5)) ** 2
    assert weighted_kappa(a.tolist(), b.tolist()) == pytest.approx(
        1 - (weights * observed).sum() / (weights * expected).sum()
    )


def test_judges_that_never_differ_have_no_kappa() -> None:
    result = agreement([0.5, 0.5], [0.5, 0.5])
    assert (result["equal"], result["correlation"], result["kappa"]) == (1.0, None, None)


def test_summary_of_a_run() -> None:
    rows = [
        {"judgements": [{"judge": "x", "prompt": "p/1", "scores": {"s": 1.0}}, {"judge": "y", "prompt": "p/1",
                                                                               "scores": {"s": 0.5}}]},
        {"judgements": [{"judge": "x", "prompt": "p/1", "scores": {"s": 0.0}}, {"judge": "y", "prompt": "p/1",
                                                                               "scores": {"s": 0.0}}]},
        {},
    ]  # fmt: skip
    summary = judge_summary(rows, "s")
    assert summary is not None and summary["prompt"] == "p/1"
    assert summary["judges"] == {"x": {"mean": 0.5, "n": 2}, "y": {"mean": 0.25, "n": 2}}
    assert judge_summary([{}], "s") is None
