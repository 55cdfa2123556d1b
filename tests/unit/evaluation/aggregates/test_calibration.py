"""Calibration: the figures of another library on the same answers, bins by hand."""

import pytest

from earwise.errors import ScoringError
from earwise.evaluation.aggregates.calibration import calibrate

CONFIDENCES = [
    0.994, 0.765, 0.864, 0.937, 0.814, 0.91, 0.575, 0.503, 0.647, 0.347, 0.829, 0.352, 0.477, 0.99, 0.686,
    0.825, 0.98, 0.737, 0.939, 0.879, 0.945, 0.851, 0.956, 0.991, 0.93, 0.905, 0.761, 0.763, 0.745, 0.126,
    0.664, 0.692, 0.438, 0.7, 0.762, 0.948, 0.908, 0.392, 0.909, 0.821, 0.905, 0.931, 0.229, 0.898, 0.835,
    0.611, 0.968, 0.402, 0.785, 0.728, 0.692, 0.984, 0.967, 0.775, 0.775, 0.543, 0.554, 0.968, 0.253, 0.629,
    0.863, 0.963, 0.644, 0.676, 0.958, 0.739, 0.699, 0.618, 0.776, 0.935, 0.521, 0.571, 0.897, 0.757, 0.839,
    0.792, 0.69, 0.803, 0.972, 0.61,
]  # fmt: skip
CORRECT = [
    1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1,
    1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 0,
    0, 1, 0, 0, 1, 1, 1, 1,
]  # fmt: skip


def test_errors_are_those_of_netcal() -> None:
    """Values of netcal 1.4.0: `ECE(10)` and `MCE(10)`."""
    result = calibrate(CONFIDENCES, [bool(flag) for flag in CORRECT])
    assert result.expected_error == pytest.approx(0.17514999999999997, rel=1e-9)
    assert result.max_error == pytest.approx(0.43900000000000006, rel=1e-9)
    squares = [(confidence - flag) ** 2 for confidence, flag in zip(CONFIDENCES, CORRECT, strict=True)]
    assert result.brier == pytest.approx(sum(squares) / len(squares))


def test_bins_are_open_below_and_closed_above() -> None:
    result = calibrate([0.0, 0.1, 0.3, 0.3001, 1.0], [False, True, True, False, True])
    assert [(each.low, each.n) for each in result.bins] == [(0.0, 2), (0.2, 1), (0.3, 1), (0.9, 1)]
    assert result.bins[0].accuracy == 0.5 and result.bins[0].confidence == pytest.approx(0.05)


def test_a_perfect_and_an_overconfident_model() -> None:
    perfect = calibrate([1.0] * 4, [True] * 4)
    assert perfect.expected_error == perfect.brier == 0
    boastful = calibrate([1.0] * 4, [False] * 4)
    assert boastful.expected_error == boastful.max_error == boastful.brier == 1


@pytest.mark.parametrize("confidences", [[], [0.5, 0.5], [1.2]], ids=["none", "too-many", "above-1"])
def test_what_is_no_confidence_is_refused(confidences: list[float]) -> None:
    with pytest.raises(ScoringError):
        calibrate(confidences, [True])
