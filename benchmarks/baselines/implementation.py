"""The interface of an implementation of the GRPO step, and the settings that all implementations share.

The settings are those of R1-AQA (arXiv:2503.11197 and its released code). The learning rate is 0: AdamW computes a full
update but changes nothing, so that every round of every implementation starts from the same weights.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from baselines.models import peft_lora_forward
from baselines.timing import PhaseTimer
from earwise.models.base import AudioLM

BETA = 0.04
GRAD_CLIP = 1.0
NEVER = 2**31 - 1
"""An id that no model samples, used as the end token if completions must not end."""
TEMPERATURE = 1.0

Ids = Sequence[int]


class StepImplementation(Protocol):
    """One implementation of the GRPO step. It reports the time of its phases to a timer."""

    def rollout(self, timer: PhaseTimer, *, full: bool, seed: int) -> list[list[list[int]]]:
        """Sample every group.

        Args:
            timer: Receives the phase `rollout`, encoding included.
            full: True samples end tokens like any other token without ending there, so that all completions have the
                same length.
            seed: Seed of the random draws.
        Returns:
            For each prompt the token ids of its completions, up to and including the first end token.
        """
        ...

    def train(self, timer: PhaseTimer, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """Train on given completions.

        Args:
            timer: Receives the phases `listen` (if separate), `reference`, `loss` (with backward) and `optimizer`.
            groups: Token ids of the completions of each prompt.
            update: False stops before the optimizer and keeps the gradients.
        """
        ...


class WithPeftLora:
    """Runs another implementation with PEFT's own LoRA forward.

    Args:
        model: Model that is trained.
        implementation: The implementation to run.
    """

    def __init__(self, model: AudioLM, implementation: StepImplementation) -> None:
        self._model, self._way = model, implementation

    def rollout(self, timer: PhaseTimer, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `StepImplementation`."""
        with peft_lora_forward(self._model):
            return self._way.rollout(timer, full=full, seed=seed)

    def train(self, timer: PhaseTimer, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `StepImplementation`."""
        with peft_lora_forward(self._model):
            self._way.train(timer, groups, update=update)


def adamw(parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """The optimizer of implementations that do not have their own."""
    return torch.optim.AdamW(list(parameters), lr=0.0, weight_decay=0.0)


def update_weights(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Clip the gradients, update the weights, and clear the gradients."""
    torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
    optimizer.step()
    optimizer.zero_grad()


def cut_at_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Token ids up to and including the first end token.

    >>> cut_at_end([5, 2, 7], (2,)), cut_at_end([5, 7], (2,))
    ([5, 2], [5, 7])
    """
    first = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: first + 1])
