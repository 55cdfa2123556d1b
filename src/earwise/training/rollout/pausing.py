"""Pause tokens in the completions of GRPO: the threshold of a step, and what is logged.

The threshold is a quantile of the entropies of the latest tokens of earlier rounds, so all completions of a round have
the same one, and they depend neither on each other nor on the number of processes.

Source: HyPeR (arXiv:2604.14806), released code JOY-SWang/HyPeR@f7c95ac. Deviation: there the tokens of the batch that
is being sampled count as well, one position after the other; here the first step, which has none, makes no pause.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from earwise.config.kinds.completions import PauseConfig
from earwise.engine.base import PauseParams, SamplingParams
from earwise.types import Completion

MIN_TOKENS = 32
"""Tokens without which there is no quantile yet (the released code's number)."""


class PauseThreshold:
    """The entropy from which a pause is made.

    Args:
        config: Settings of the pauses.
    """

    def __init__(self, config: PauseConfig) -> None:
        self._config = config
        self._entropies: deque[float] = deque(maxlen=config.entropy_history)

    @property
    def entropy(self) -> float:
        """The threshold in nats; infinite until there are enough tokens."""
        if len(self._entropies) < min(MIN_TOKENS, self._config.entropy_history):
            return math.inf
        return float(np.quantile(list(self._entropies), self._config.entropy_quantile))

    def sampling_params(self, sampling_params: SamplingParams) -> SamplingParams:
        """Sampling parameters with pauses at the threshold as it is now."""
        config = self._config
        pause = PauseParams(self.entropy, config.token, config.max_pauses, config.tokens_per_pause)
        return replace(sampling_params, pause=pause)

    def observe(self, completions: Iterable[Completion]) -> None:
        """Take in the entropies of the tokens of sampled completions."""
        for completion in completions:
            self._entropies.extend(completion.entropies)

    def state_dict(self) -> dict[str, Any]:
        """The latest entropies."""
        return {"entropies": list(self._entropies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self._entropies.clear()
        self._entropies.extend(state["entropies"])
