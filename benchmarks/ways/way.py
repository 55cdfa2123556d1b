"""What a way of making a GRPO step offers, and the settings that all ways share (R1-AQA's, papers/r1-aqa.md section 5).

The learning rate is 0: AdamW does all its arithmetic and the weights stay as they are, so that every round of every way
sees the same ones.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from earwise.models.base import AudioLM
from ways.models import peft_alone
from ways.timing import Clock

BETA = 0.04
GRAD_CLIP = 1.0
NEVER = 2**31 - 1
"""An end mark that no model draws."""
TEMPERATURE = 1.0

Ids = Sequence[int]


class Way(Protocol):
    """One way; its phases are named on the clock."""

    def rollout(self, clock: Clock, *, full: bool, seed: int) -> list[list[list[int]]]:
        """Sample every group anew: new ids per completion, cut behind the first end mark.

        Args:
            clock: Gets `rollout`, which holds listening.
            full: End marks are drawn like any token but end nothing, so that all completions have full length.
            seed: Of the draws.
        """
        ...

    def train(self, clock: Clock, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """Learn from given completions.

        Args:
            clock: Gets `listen` (where it is apart), `reference`, `loss` (with its backward pass) and `optimizer`.
            groups: Ids of every completion, all full length or cut behind the first end mark.
            update: False stops before the optimizer and leaves the gradients where they are.
        """
        ...


class WithPeft:
    """A way of others: LoRA is peft's own while it works."""

    def __init__(self, model: AudioLM, way: Way) -> None:
        self._model, self._way = model, way

    def rollout(self, clock: Clock, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `Way`."""
        with peft_alone(self._model):
            return self._way.rollout(clock, full=full, seed=seed)

    def train(self, clock: Clock, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `Way`."""
        with peft_alone(self._model):
            self._way.train(clock, groups, update=update)


def adamw(parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """The optimizer of the ways that do not bring their own."""
    return torch.optim.AdamW(list(parameters), lr=0.0, weight_decay=0.0)


def update_weights(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Clip, step, forget."""
    torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
    optimizer.step()
    optimizer.zero_grad()


def cut(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Ids up to and including the first end mark.

    >>> cut([5, 2, 7], (2,)), cut([5, 7], (2,))
    ([5, 2], [5, 7])
    """
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: first + 1])
