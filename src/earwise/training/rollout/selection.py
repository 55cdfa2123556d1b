"""Selection and weights of the completions of a step by the policy's confidence in them (`confidence:` of GRPO).

A token's confidence is the probability that the policy gave to it when it sampled it, at temperature 1.

Source: HyPeR (arXiv:2604.14806), released code JOY-SWang/HyPeR@f7c95ac; deviations in `algorithms/confidence.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from earwise.algorithms.confidence import completion_confidence, most_confident, recovery, sigmoid_weights
from earwise.config.kinds.completions import ConfidenceConfig
from earwise.types import Completion

RECOVERY_TOKENS = 64
"""Tokens at the beginning and at the end of a completion that `recovery_bonus` compares (number: released code)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What confidence does to the completions of a step, group by group.

    Attributes:
        kept: Whether each completion is trained on.
        weights: Factor of the advantage of each completion.
        bonuses: What is added to the reward of each completion.
        confidence: Mean confidence of all completions; None where it is not measured.
    """

    kept: list[list[bool]]
    weights: list[list[float]]
    bonuses: list[list[float]]
    confidence: float | None


def select_completions(groups: Sequence[Sequence[Completion]], config: ConfidenceConfig | None) -> Selection:
    """Select and weight completions.

    Args:
        groups: Completions of each prompt of a step, with the log-probabilities of their tokens.
        config: Settings; None keeps all completions as they are.
    """
    kept = [[True] * len(group) for group in groups]
    weights = [[1.0] * len(group) for group in groups]
    bonuses = [[0.0] * len(group) for group in groups]
    if config is None:
        return Selection(kept, weights, bonuses, None)
    probabilities = [[[math.exp(value) for value in row.logprobs] for row in group] for group in groups]
    if config.recovery_bonus:
        bonuses = [
            [config.recovery_bonus * recovery(tokens, RECOVERY_TOKENS) for tokens in group] for group in probabilities
        ]
    if config.top_p_keep == 1 and not config.weight_advantages:
        return Selection(kept, weights, bonuses, None)
    confidences = [
        [completion_confidence(tokens, config.measure, config.window_size, config.stride) or 0.0 for tokens in group]
        for group in probabilities
    ]
    kept = [most_confident(group, config.top_p_keep) for group in confidences]
    if config.weight_advantages:
        weights = _weights(confidences, config)
    values = [value for group in confidences for value in group]
    return Selection(kept, weights, bonuses, math.fsum(values) / len(values) if values else None)


def _weights(confidences: Sequence[Sequence[float]], config: ConfidenceConfig) -> list[list[float]]:
    """Factor of the advantage of each completion; the arguments are those of `select_completions`."""
    low, high = config.weight_clip_min, config.weight_clip_max
    if config.standardize_over == "group":
        return [sigmoid_weights(group, low, high) for group in confidences]
    of_batch = iter(sigmoid_weights([value for group in confidences for value in group], low, high))
    return [[next(of_batch) for _ in group] for group in confidences]
