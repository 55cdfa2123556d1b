"""Each implementation in the precision in which it is fastest on this machine.

earwise takes `--compute` (`earwise.models.precision.compute`); `auto` is measured. Implementations on transformers can
run in float32 or, as its trainers do with `bf16: true`, under autocast to bfloat16; `fastest` measures both on a small
piece of the same work and takes the faster.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from baselines.implementation import Ids, StepImplementation
from baselines.timing import PhaseTimer

BaselinePrecision = Literal["float32", "bfloat16"]
CHOICES = ("float32", "bfloat16", "fastest")
COMPUTE_HELP = "precision of earwise's products, as for `earwise evaluate`"
BASELINE_HELP = "float32, autocast to bfloat16, or the faster of the two"


def autocast(precision: str) -> AbstractContextManager[Any]:
    """The context in which a baseline computes in a precision."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


def choose(choice: str, work: Callable[[], object]) -> BaselinePrecision:
    """The precision of the baselines.

    Args:
        choice: One of `CHOICES`.
        work: A piece of their work, run twice in each precision if the choice is `fastest`.
    """
    if choice == "fastest":
        return "bfloat16" if _seconds("bfloat16", work) < _seconds("float32", work) else "float32"
    return "bfloat16" if choice == "bfloat16" else "float32"


def _seconds(precision: str, work: Callable[[], object]) -> float:
    """The shorter time of two runs."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        with autocast(precision):
            work()
        times.append(time.perf_counter() - start)
    return min(times)


class InPrecision:
    """Runs another implementation of the GRPO step in a precision.

    Args:
        implementation: The implementation to run.
        precision: `float32` or `bfloat16`.
    """

    def __init__(self, implementation: StepImplementation, precision: str) -> None:
        self._implementation, self._precision = implementation, precision

    def rollout(self, timer: PhaseTimer, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `StepImplementation`."""
        with autocast(self._precision):
            return self._implementation.rollout(timer, full=full, seed=seed)

    def train(self, timer: PhaseTimer, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `StepImplementation`."""
        with autocast(self._precision):
            self._implementation.train(timer, groups, update=update)
