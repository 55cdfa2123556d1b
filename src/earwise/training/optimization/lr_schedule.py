"""The learning-rate schedules of transformers, by its names, as a factor on the learning rate at a step.

Source: transformers 5, `optimization.py`. Deviation: the warm-up ends one step earlier, so that the first step trains
(transformers' first step has rate 0), and `constant` warms up if it is asked to.
"""

import math
from collections.abc import Callable

from earwise.config.optimizer import OptimizerConfig


def learning_rate_factor(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Factor on the learning rate at a step: linear warm-up, then the schedule.

    Args:
        step: Number of the step, from 0.
        max_steps: Optimizer steps of the stage; the length of the schedule unless the recipe sets another one.
        config: Warm-up and schedule.

    >>> [round(learning_rate_factor(s, 4, OptimizerConfig(lr_scheduler_type="linear")), 2) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    >>> halved = OptimizerConfig(lr_scheduler_type="linear", lr_scheduler_steps=8)
    >>> [round(learning_rate_factor(s, 4, halved), 3) for s in range(4)]
    [1.0, 0.875, 0.75, 0.625]
    """
    warmup_steps = config.warmup_steps
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    length = config.lr_scheduler_steps or max_steps
    if config.lr_scheduler_type == "inverse_sqrt":
        timescale = config.lr_scheduler_kwargs.timescale or warmup_steps or 10_000
        return ((step - warmup_steps) / timescale + 1) ** -0.5
    return _SHAPES[config.lr_scheduler_type]((step - warmup_steps) / max(1, length - warmup_steps), config)


def _constant(progress: float, config: OptimizerConfig) -> float:
    return 1.0


def _linear(progress: float, config: OptimizerConfig) -> float:
    return 1 - progress


def _cosine(progress: float, config: OptimizerConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _cosine_with_min_lr(progress: float, config: OptimizerConfig) -> float:
    floor = _floor(config)
    return _cosine(progress, config) * (1 - floor) + floor


def _cosine_with_restarts(progress: float, config: OptimizerConfig) -> float:
    return 0.0 if progress >= 1 else _cosine((config.lr_scheduler_kwargs.num_cycles * progress) % 1, config)


def _polynomial(progress: float, config: OptimizerConfig) -> float:
    floor = config.lr_scheduler_kwargs.lr_end / config.learning_rate
    return float((1 - floor) * (1 - progress) ** config.lr_scheduler_kwargs.power + floor)


def _floor(config: OptimizerConfig) -> float:
    """The lowest factor: `min_lr_rate`, or that of `min_lr` on the decoder's rate."""
    kwargs = config.lr_scheduler_kwargs
    return kwargs.min_lr_rate if kwargs.min_lr_rate is not None else (kwargs.min_lr or 0.0) / config.learning_rate


_SHAPES: dict[str, Callable[[float, OptimizerConfig], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}
"""Name of a schedule -> factor as a function of the finished share of the steps after the warm-up."""
