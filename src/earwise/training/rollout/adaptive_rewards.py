"""Adaptive rewards: the more completions of a step think, the less thinking earns, and the other way round.

Used by GRPO with `balance_thinking`, between sampling and rewards. A policy that is free to think or to answer at once
soon does only one of both, whichever earned more in the beginning. The rewards `adaptive_thinking` and
`adaptive_consistent` are therefore scaled by factors that follow from the share of thinking completions in the step;
the factors rise to 1 until the last step.

Source: Audio-Thinker (arXiv:2508.08039), equations 3 to 5. Ours where the paper is silent: a batch is all completions
of one round of sampling, of all processes; the first step has progress 0.
"""

from collections.abc import Sequence
from functools import partial
from math import exp

from earwise.algorithms.rewards import Reward, adaptive_consistent, adaptive_thinking, has_reasoning
from earwise.training.distributed import parallel
from earwise.types import Completion, Example

ADAPTIVE = {"adaptive_thinking": adaptive_thinking, "adaptive_consistent": adaptive_consistent}


def reward_factors(thinking_share: float, progress: float) -> tuple[float, float]:
    """Factors on the rewards of thinking and of answering at once.

    Args:
        thinking_share: Share of the completions that think, in [0, 1].
        progress: Finished share of the training, in [0, 1].
    Returns:
        Two factors in (0, 1].
    """
    return exp(-thinking_share * (1 - progress)), exp(-(1 - thinking_share) * (1 - progress))


class AdaptiveRewards:
    """The adaptive rewards of the running step.

    Args:
        max_steps: Optimizer steps of the whole stage.
    """

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self.thinking_share = 0.0
        """Share of thinking completions in the last batch."""
        self._thinking_factor = self._answering_factor = 1.0

    def observe(self, groups: Sequence[Sequence[Completion]], step: int) -> None:
        """Set the factors by a batch of completions, before its rewards are computed.

        Args:
            groups: This process's completions; all processes must call.
            step: Number of the step, from 0.
        """
        texts = [completion.text for group in groups for completion in group]
        counts = parallel.all_sum({"thinking": float(sum(map(has_reasoning, texts))), "all": float(len(texts))})
        self.thinking_share = counts["thinking"] / max(1.0, counts["all"])
        self._thinking_factor, self._answering_factor = reward_factors(self.thinking_share, step / self._max_steps)

    def functions(self) -> dict[str, Reward]:
        """The reward functions by name; they use the factors of the last observed batch."""
        return {name: partial(self._reward, name) for name in ADAPTIVE}

    def _reward(self, name: str, example: Example, completion: str) -> float:
        return ADAPTIVE[name](example, completion, think=self._thinking_factor, answer=self._answering_factor)
