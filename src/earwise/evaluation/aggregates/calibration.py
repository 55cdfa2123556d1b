"""Whether a model knows what it knows: confidence against accuracy, in bins, and the figures that sum it up.

Pure functions over rows. The confidence of an answer is its probability under the model (`rows.answer_confidence`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from earwise.errors import ScoringError
from earwise.evaluation.metrics.stats import wilson

BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The answers whose confidence lies between two limits."""

    low: float
    """Lower limit of the confidence, not included except for 0."""
    high: float
    """Upper limit, included."""
    n: int
    confidence: float
    """Mean confidence of the answers."""
    accuracy: float
    """Share of right answers."""
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well confidence and accuracy agree."""

    n: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    expected_error: float
    """Expected calibration error: mean distance of confidence and accuracy over the bins, weighted by their size."""
    max_error: float
    """The largest distance of a bin."""
    brier: float
    """Mean squared distance of the confidence from 1 for right and 0 for wrong answers."""
    bins: tuple[CalibrationBin, ...]
    """The bins that hold answers."""


def calibrate(confidences: Sequence[float], correct: Sequence[bool], num_bins: int = BINS) -> Calibration:
    """Compare confidences with what was right, in bins of equal width.

    >>> round(calibrate([0.9, 0.9, 0.4], [True, False, False]).expected_error, 3)
    0.4

    Args:
        confidences: Probability of each answer, in [0, 1].
        correct: Whether each answer is right.
        num_bins: Number of bins between 0 and 1.
    Raises:
        ScoringError: if the lists are empty or differ in length, or a confidence is no probability.
    Source: Guo et al. 2017 (arXiv:1706.04599), section 2 (ECE, MCE, bins open below and closed above).
    """
    if len(confidences) != len(correct) or not confidences:
        raise ScoringError(f"{len(confidences)} confidences for {len(correct)} answers; give one of each per answer")
    members: dict[int, list[int]] = {}
    for place, confidence in enumerate(confidences):
        if not 0 <= confidence <= 1:
            raise ScoringError(f"confidence {confidence} of answer {place} is not between 0 and 1")
        members.setdefault(_bin_of(confidence, num_bins), []).append(place)
    bins = []
    for number, places in sorted(members.items()):
        num_right = sum(correct[place] for place in places)
        mean = sum(confidences[place] for place in places) / len(places)
        bins.append(
            CalibrationBin(
                number / num_bins, (number + 1) / num_bins, len(places), mean, num_right / len(places),
                wilson(num_right, len(places)),
            )
        )  # fmt: skip
    n = len(confidences)
    gaps = [abs(each.confidence - each.accuracy) for each in bins]
    return Calibration(
        n,
        sum(confidences) / n,
        sum(correct) / n,
        sum(gap * each.n for gap, each in zip(gaps, bins, strict=True)) / n,
        max(gaps),
        sum((confidence - flag) ** 2 for confidence, flag in zip(confidences, correct, strict=True)) / n,
        tuple(bins),
    )


def _bin_of(confidence: float, num_bins: int) -> int:
    """Number of the bin of a confidence: bins are open below and closed above, the first one holds 0 too."""
    number = int(confidence * num_bins)
    return number - 1 if number and confidence == number / num_bins else min(number, num_bins - 1)
