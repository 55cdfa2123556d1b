"""Thinking and answering at once kept in balance: the more a batch does one, the less that is worth.

Between the engine and the rewards of a GRPO stage with `balance_thinking`. A policy that is free to think soon does
only one of both, whichever earned more at first, and never finds out when the other pays. So the two rewards that tell
them apart are softened by factors from the share of thinking completions in the step; they fade to 1 until the last
step.

Source: Audio-Thinker (arXiv 2508.08039), eqs. 3 to 5. Ours where the paper is silent: a batch is all completions of one
round of sampling, of all processes; the first step has progress 0.
"""

from collections.abc import Sequence
from functools import partial
from math import exp

from earwise.algorithms.rewards import Reward, adaptive_consistent, adaptive_thinking, thinks
from earwise.train.distributed import parallel
from earwise.types import Completion, Example

SOFTENED = {"adaptive_thinking": adaptive_thinking, "adaptive_consistent": adaptive_consistent}


def factors(share: float, progress: float) -> tuple[float, float]:
    """What thinking and answering at once are softened by.

    Args:
        share: Of the completions that think, in [0, 1].
        progress: Of the training, in [0, 1].
    Returns:
        Two factors in (0, 1].
    """
    return exp(-share * (1 - progress)), exp(-(1 - share) * (1 - progress))


class Balance:
    """The two rewards as they are worth in the running step.

    Args:
        steps: Of the whole training.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.share = 0.0
        self._think = self._answer = 1.0

    def see(self, groups: Sequence[Sequence[Completion]], step: int) -> None:
        """Take in a batch (this process's part of it) before it is judged; `step` counts from 0."""
        said = [one.text for group in groups for one in group]
        counts = parallel.total({"thinking": float(sum(map(thinks, said))), "all": float(len(said))})
        self.share = counts["thinking"] / max(1.0, counts["all"])
        self._think, self._answer = factors(self.share, step / self._steps)

    def rewards(self) -> dict[str, Reward]:
        """By name; they follow what was seen last."""
        return {name: partial(self._worth, name) for name in SOFTENED}

    def _worth(self, name: str, example: Example, completion: str) -> float:
        return SOFTENED[name](example, completion, think=self._think, answer=self._answer)
