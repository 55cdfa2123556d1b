"""The optimizer (AdamW) and the learning-rate schedule of a stage."""

import math

import torch

from earwise.config.stages import OptimizerConfig
from earwise.models.base import AudioLM
from earwise.training.trainable import parameter_groups


def build_optimizer(model: AudioLM, config: OptimizerConfig, *, sharded: bool) -> torch.optim.AdamW:
    """AdamW for the trained parameters of a model.

    Args:
        model: The model, prepared by `set_trainable`.
        config: Learning rates, betas and weight decay.
        sharded: Whether FSDP2 shards the decoder; sharded and whole parameters cannot be updated by one kernel.
    """
    on_cuda = next(model.module.parameters()).is_cuda
    return torch.optim.AdamW(
        parameter_groups(model, config),
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True if on_cuda and not sharded else None,  # the other kernels need temporaries as large as the weights
        foreach=False if sharded else None,
    )


def learning_rate_factor(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Factor on the learning rate at a step: linear warm-up, then the schedule, which reaches 0 at `max_steps`.

    Args:
        step: Number of the step, from 0.
        max_steps: Optimizer steps in all.
        config: Warm-up and kind of schedule.

    >>> [round(learning_rate_factor(s, 4, OptimizerConfig(lr_scheduler_type="linear")), 2) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return 1 - progress if config.lr_scheduler_type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
