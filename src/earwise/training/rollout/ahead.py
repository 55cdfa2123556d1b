"""Rollouts that a server samples while the policy is updated: those of the next step, with weights one step old.

With `weight_sync.max_staleness: 1` a step takes the rollouts that were begun during the step before, sends its own
weights to the server, has it begin with the next ones, and updates meanwhile. The first rollouts of a process are
waited for. How old the weights were that sampled a step is logged as `staleness`; the loss corrects for it
(`sampling_logprobs` of `policy_loss.grpo_loss`).

A checkpoint holds the completions and rewards that were sampled ahead, and the position in the data before them, so
that a run that is resumed trains on the very same rollouts.

Source: one step of asynchrony as in AReaL (arXiv:2505.24298) and in TRL's asynchronous GRPO, whose name for the setting
is kept.
"""

import copy
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from earwise.config.stages import GrpoConfig
from earwise.training.rollout.collect import CollectedRollouts, RolloutCollector, SampledGroups
from earwise.training.rollout.reward_runner import RolloutStats
from earwise.training.stages.stage import StageContext
from earwise.types import Completion

AHEAD = "ahead"
"""Key of what was sampled ahead in the state of a stage."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """Rollouts that are being sampled.

    Attributes:
        step: The step that they are for.
        state: State of the collector before their prompts were drawn.
        result: The rollouts, and what was sampled in each round.
    """

    step: int
    state: dict[str, Any]
    result: "Future[tuple[CollectedRollouts, list[SampledGroups]]]"


class AheadCollector:
    """Collects rollouts as `RolloutCollector` does, one step ahead.

    Args:
        collector: Collects the rollouts of one step; used by one thread at a time.
        context: What the run gives to the stage.
        config: Settings of the stage.
    """

    def __init__(self, collector: RolloutCollector, context: StageContext, config: GrpoConfig) -> None:
        self._collector, self._context, self._config = collector, context, config
        self._begun: _Begun | None = None
        self._stored: dict[str, Any] | None = None
        """What a checkpoint holds of the next step."""

    def collect(self, step: int) -> CollectedRollouts:
        """The rollouts of a step (from 0); those of the next one are begun with the weights as they are now."""
        collected, staleness = self._take(step)
        if step + self._config.num_iterations < self._config.max_steps:
            self._begin(step + self._config.num_iterations)
        return CollectedRollouts(collected.rollouts, collected.metrics | {"staleness": float(staleness)})

    def _take(self, step: int) -> tuple[CollectedRollouts, int]:
        """The rollouts of a step, and by how many updates of the weights they are behind."""
        stored, self._stored = self._stored, None
        if stored is not None and stored["step"] == step:
            return self._collector.collect(step, replayed=[_read(round_) for round_ in stored["rounds"]]), 1
        if self._begun is not None:
            begun, self._begun = self._begun, None
            with self._context.profiler.phase("rollout"):
                collected, _ = begun.result.result()
            self._collector.write_held_samples()
            if begun.step == step:  # after a rollback it is not: these prompts are left out like those in between
                return collected, 1
        return self._collector.collect(step), 0

    def _begin(self, step: int) -> None:
        """Send the weights, and sample for a step in a thread; a failure is raised where its result is taken."""
        self._collector.send_weights(step)
        begun = _Begun(step, copy.deepcopy(self._collector.state_dict()), Future())

        def sample() -> None:
            rounds: list[SampledGroups] = []
            try:
                begun.result.set_result((self._collector.collect(step, recorded=rounds), rounds))
            except BaseException as error:
                begun.result.set_exception(error)

        threading.Thread(target=sample, name="earwise-rollout", daemon=True).start()
        self._begun = begun

    def state_dict(self) -> dict[str, Any]:
        """The collector's state; with rollouts that were sampled ahead, its state before them, and these rollouts."""
        if self._begun is None:
            return self._collector.state_dict() | ({} if self._stored is None else {AHEAD: self._stored})
        with self._context.profiler.phase("rollout"):
            _, rounds = self._begun.result.result()
        return self._begun.state | {
            AHEAD: {"step": self._begun.step, "rounds": [_written(sampled) for sampled in rounds]}
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self._collector.load_state_dict(state)
        self._stored = state.get(AHEAD)


def _written(sampled: SampledGroups) -> dict[str, Any]:
    """The completions and rewards of a round as plain values."""
    return {
        "groups": [[asdict(completion) for completion in group] for group in sampled.groups],
        "rewards": sampled.rewards,
        "stats": [asdict(stats) for stats in sampled.stats],
        "num_server_errors": sampled.num_server_errors,
    }


def _read(values: Mapping[str, Any]) -> SampledGroups:
    """The round that `_written` wrote."""
    return SampledGroups(
        [[Completion(**completion) for completion in group] for group in values["groups"]],
        values["rewards"],
        [RolloutStats(**stats) for stats in values["stats"]],
        values["num_server_errors"],
    )
