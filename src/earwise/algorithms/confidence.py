"""Confidence of a completion, from what a model said about its tokens, and what is done with it.

Two definitions of a token's confidence are in use. DeepConf: the mean of -log P over the likeliest tokens in its place
(`Completion.confidences`), large where one token stands out. HyPeR: the probability of the token itself. The confidence
of a completion is that of its tokens on average, or of its least confident stretch (DeepConf's groups). It weights and
filters votes (DeepConf), or selects and weights the completions that a policy is trained on (HyPeR).

Sources: DeepConf (arXiv:2508.15260), released code facebookresearch/deepconf@21057ed; HyPeR (arXiv:2604.14806),
released code JOY-SWang/HyPeR@f7c95ac, `grpo_trainer_deepconf_hs.py`. Deviations from HyPeR: 1. groups lie within a
completion; there they run over the padded batch, and a group of padding alone has confidence 0; 2. its weights are
computed and then used as a filter alone; here they multiply advantages where that is asked for.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

Measure = Literal["mean", "tail", "bottom_window", "min_window"]
"""`mean` of all tokens; `tail`, the last ones; of groups of neighbouring tokens the least confident (`min_window`, the
paper's lowest group confidence), or the mean of the least confident tenth (`bottom_window`). Names: DeepConf's code."""
BOTTOM_SHARE = 0.1
"""Share of the groups in `bottom_window`."""


def group_confidences(token_confidences: Sequence[float], window: int, stride: int = 1) -> list[float]:
    """Mean confidence of each group of neighbouring tokens; of all tokens where they are fewer than a group.

    >>> group_confidences([1.0, 3.0, 5.0, 1.0], 2), group_confidences([1.0, 3.0], 5)
    ([2.0, 4.0, 3.0], [2.0])

    Args:
        token_confidences: Confidence of each token, at least one.
        window: Tokens of a group.
        stride: Tokens from the beginning of one group to that of the next.
    """
    size = min(window, len(token_confidences))
    return [
        math.fsum(token_confidences[start : start + size]) / size
        for start in range(0, len(token_confidences) - size + 1, stride)
    ]


def completion_confidence(
    token_confidences: Sequence[float], measure: Measure, window: int, stride: int = 1
) -> float | None:
    """Confidence of a completion; None if it has no tokens.

    >>> [completion_confidence([4.0, 1.0, 1.0, 2.0], name, 2) for name in ("mean", "tail", "min_window")]
    [2.0, 1.5, 1.0]

    Args:
        token_confidences: Confidence of each token.
        measure: How one number is made of them.
        window: Tokens of a group, and of the tail.
        stride: Tokens from the beginning of one group to that of the next.
    """
    if not token_confidences:
        return None
    if measure in ("mean", "tail"):
        values = token_confidences if measure == "mean" else token_confidences[-window:]
        return math.fsum(values) / len(values)
    groups = sorted(group_confidences(token_confidences, window, stride))
    lowest = groups[: max(1, int(BOTTOM_SHARE * len(groups)))] if measure == "bottom_window" else groups[:1]
    return math.fsum(lowest) / len(lowest)


def recovery(probabilities: Sequence[float], window: int) -> float:
    """How much surer of its tokens a model is at the end of a completion than at its beginning; 0 if it is not.

    >>> recovery([0.25, 0.25, 0.5, 1.0], 2), recovery([0.5, 0.25], 1)
    (0.5, 0.0)

    Args:
        probabilities: Probability of each token.
        window: Tokens of the beginning, and of the end.
    Source: HyPeR's released code, whose `recovery_bonus` multiplies it.
    """
    if not probabilities:
        return 0.0
    first, last = probabilities[:window], probabilities[-window:]
    return max(0.0, math.fsum(last) / len(last) - math.fsum(first) / len(first))


def most_confident(confidences: Sequence[float], share: float) -> list[bool]:
    """Which completions of a group are kept: the most confident share of them, at least one; those that equal the last
    one kept are kept as well.

    >>> most_confident([0.2, 0.9, 0.5, 0.9], 0.25)
    [False, True, False, True]

    Args:
        confidences: Confidence of each completion, at least one.
        share: Share to keep; its number is rounded to the nearest integer, halves to the even one.
    Source: HyPeR's released code.
    """
    num_kept = min(len(confidences), max(1, round(share * len(confidences))))
    threshold = sorted(confidences, reverse=True)[num_kept - 1]
    return [confidence >= threshold for confidence in confidences]


def sigmoid_weights(confidences: Sequence[float], low: float, high: float) -> list[float]:
    """Weights around 1: half plus the sigmoid of the standardised confidence, clipped.

    >>> [round(weight, 3) for weight in sigmoid_weights([1.0, 2.0, 3.0], 0.0, 1.25)]
    [0.769, 1.0, 1.231]

    Args:
        confidences: Confidence of each completion of a batch or group.
        low: Smallest weight.
        high: Largest weight.
    Source: HyPeR's released code; the standard deviation is that of a sample (n - 1), at least 1e-6.
    """
    count = len(confidences)
    mean = math.fsum(confidences) / max(count, 1)
    variance = math.fsum((value - mean) ** 2 for value in confidences) / (count - 1) if count > 1 else 0.0
    spread = max(math.sqrt(variance), 1e-6)
    return [min(high, max(low, 0.5 + 1 / (1 + math.exp((mean - value) / spread)))) for value in confidences]


def above_percentile(confidences: Sequence[float], share: float) -> list[bool]:
    """Which votes count: those whose confidence reaches the percentile that leaves a share of them.

    >>> above_percentile([1.0, 2.0, 3.0, 4.0], 0.5), above_percentile([1.0, 2.0, 3.0, 4.0], 0.1)
    ([False, False, True, True], [False, False, False, True])

    Args:
        confidences: Confidence of each vote, at least one.
        share: Share of the votes.
    Source: DeepConf's released code (numpy's percentile with linear interpolation).
    """
    ordered = sorted(confidences)
    place = (1 - share) * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    threshold = below + (above - below) * (place - math.floor(place))
    return [confidence >= threshold for confidence in confidences]


def weighted_majority(answers: Sequence[str | None], weights: Sequence[float]) -> list[str]:
    """The answers whose votes weigh most together; several if they weigh the same, none if nobody votes.

    >>> weighted_majority(["a", "b", "b", None], [3.0, 1.0, 1.0, 9.0])
    ['a']

    Args:
        answers: Answer of each completion; None is no vote.
        weights: Weight of each completion.
    """
    totals: dict[str, list[float]] = defaultdict(list)
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals[answer].append(weight)
    sums = {answer: math.fsum(values) for answer, values in totals.items()}
    most = max(sums.values(), default=0.0)
    return [answer for answer, total in sums.items() if math.isclose(total, most, rel_tol=1e-12)]
