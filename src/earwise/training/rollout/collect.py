"""Collecting rollouts: prompts are drawn, completions sampled and rewarded, until a step has what it learns from.

Flow of a round: draw prompts from the mixture -> send newer weights to the rollout server, if there is one -> sample
`group_size` completions per prompt -> compute their rewards. With dynamic sampling there are several rounds: prompts
whose completions all have the same reward give no gradient, and new prompts are sampled in their place.

Several processes each sample and reward a share of the prompts; every process then has all rollouts.

Source of dynamic sampling: DAPO (arXiv:2503.14476), section 3.2. Ours: a limit on the number of rounds, after which
groups without signal fill the step.
"""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from earwise.algorithms.curriculum import Band, OnlineBand
from earwise.algorithms.rewards import load_reward
from earwise.config.stages import GrpoConfig
from earwise.engine.base import Engine, Prompt, SamplingParams
from earwise.engine.sampling.pause import pause_token_id
from earwise.models.base import AudioLM
from earwise.prompts import prompt_turns
from earwise.training.batches import build_mixture
from earwise.training.distributed import parallel
from earwise.training.logging.sample_log import sample_row
from earwise.training.rollout.adaptive_rewards import AdaptiveRewards
from earwise.training.rollout.judge import judge_reward
from earwise.training.rollout.pausing import PauseThreshold
from earwise.training.rollout.retry import retry_while_away
from earwise.training.rollout.reward_runner import (
    RewardFunction,
    RewardRunner,
    RolloutStats,
    rollout_stats,
    step_metrics,
)
from earwise.training.rollout.rollout_engine import accept_sampled, open_rollout_engine
from earwise.training.rollout.weight_sync import WeightSync
from earwise.training.stages.stage import StageContext
from earwise.types import Completion, Example

TEXT_TOKENS = 50
"""Estimated text tokens of a prompt, for the division of prompts among processes."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, its completions and their rewards.

    Attributes:
        example_id: Id of the row of the prompt.
        prompt: The prompt.
        completions: `group_size` completions.
        rewards: Weighted sum of the rewards of each completion.
    """

    example_id: str
    prompt: Prompt
    completions: list[Completion]
    rewards: list[float]


@dataclass(frozen=True, slots=True)
class CollectedRollouts:
    """The rollouts of a step (of all processes), and metrics of everything that was sampled for it."""

    rollouts: list[Rollout]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class DrawnPrompts:
    """Prompts of a round with their rows, and the number of rows that were left out because their audio cannot be
    read."""

    examples: list[Example]
    prompts: list[Prompt]
    num_skipped: int


@dataclass(frozen=True, slots=True)
class SampledGroups:
    """Completions and rewards of the prompts of a round, of all processes.

    Attributes:
        groups: Completions of each prompt.
        rewards: Rewards of each completion; None for a group to leave out because a reward failed.
        stats: Statistics of each process.
        num_server_errors: Number of failed requests of this process to the rollout server.
    """

    groups: list[list[Completion]]
    rewards: list[list[float] | None]
    stats: list[RolloutStats]
    num_server_errors: int


class RolloutCollector:
    """Collects the rollouts of GRPO.

    Args:
        context: What the run gives to the stage.
        config: Settings of the stage.
    """

    def __init__(self, context: StageContext, config: GrpoConfig) -> None:
        self._context, self._config = context, config
        self._in_background = False
        self._held_samples: list[dict[str, Any]] = []
        self._mixture = build_mixture(config, context.data.mixture, context.seed, lambda row: (row,))
        self._styles, self._style_weights = list(config.data.styles), list(config.data.styles.values())
        self._engine = open_rollout_engine(
            config.rollout_server, context.model, context.encoder_cache, batch_size=config.prompts_per_step
        )
        self._weight_sync = _open_weight_sync(self._engine, context, config)
        self._retry_minutes = config.rollout_retry_minutes if config.on_rollout_error == "retry" else 0.0
        self._sampling_params = SamplingParams(
            config.max_new_tokens, config.temperature, config.top_p, config.top_k, context.seed
        )
        self._pause_threshold = PauseThreshold(config.pause) if config.pause else None
        if config.pause is not None:
            pause_token_id(context.model, config.pause.token)  # refused before anything is sampled
        self._adaptive_rewards = AdaptiveRewards(config.max_steps) if config.balance_thinking else None
        self._reward_runner = _open_reward_runner(config, self._adaptive_rewards)
        curriculum = config.curriculum
        self._passes = load_reward(curriculum.reward)
        self._online_curriculum = (
            OnlineBand(Band(**curriculum.band.model_dump()), curriculum.exploration, context.seed)
            if curriculum.order == "online"
            else None
        )

    def collect(
        self, step: int, *, recorded: list[SampledGroups] | None = None, replayed: Sequence[SampledGroups] | None = None
    ) -> CollectedRollouts:
        """Sample and reward until the step (from 0) has `prompts_per_step` rollouts, or the rounds are used up.

        With dynamic sampling, groups without signal come after those with signal. Groups whose reward failed are left
        out.

        Args:
            step: The step.
            recorded: Receives what every round samples. A list says that another thread is at work: nothing is timed,
                and samples for the log are held back for `write_held_samples`.
            replayed: What the rounds sampled earlier, in place of sampling.
        """
        config = self._config
        self._in_background = recorded is not None
        remaining = iter(replayed or ())
        with_signal: list[Rollout] = []
        without_signal: list[Rollout] = []
        stats: list[RolloutStats] = []
        rounds = num_skipped = num_server_errors = 0
        threshold = self._pause_threshold.entropy if self._pause_threshold else math.inf
        while rounds < (config.dynamic_sampling or 1) and len(with_signal) < config.prompts_per_step:
            rounds += 1
            num_sampled = sum(process_stats.groups for process_stats in stats)
            drawn = self._draw_prompts(step, num_sampled, config.prompts_per_step - len(with_signal))
            sampled = self._sample(step, drawn) if replayed is None else self._replay(step, next(remaining))
            if recorded is not None:
                recorded.append(sampled)
            num_skipped += drawn.num_skipped
            num_server_errors += sampled.num_server_errors
            stats += sampled.stats
            for example, rollout in self._rollouts(drawn, sampled):
                is_flat = config.dynamic_sampling is not None and max(rollout.rewards) == min(rollout.rewards)
                (without_signal if is_flat else with_signal).append(rollout)
                self._log(step, example, rollout)
        metrics = step_metrics(stats)
        if self._pause_threshold is not None and math.isfinite(threshold):
            metrics["pause_entropy"] = threshold
        if self._adaptive_rewards is not None:
            metrics["thinking"] = self._adaptive_rewards.thinking_share
        metrics["skipped"] = float(num_skipped)
        metrics |= parallel.all_sum({"sampler_errors": float(num_server_errors)})
        if config.dynamic_sampling is not None:
            metrics |= {"rounds": float(rounds), "signal_groups": float(len(with_signal))}
        return CollectedRollouts((with_signal + without_signal)[: config.prompts_per_step], metrics)

    def _draw_prompts(self, step: int, num_sampled: int, count: int) -> DrawnPrompts:
        """Draw the next `count` prompts of a step in which `num_sampled` prompts were sampled already."""
        context = self._context
        rng = random.Random(
            f"{context.seed} grpo {step} {num_sampled}" if num_sampled else f"{context.seed} grpo {step}"
        )
        examples: list[Example] = []
        prompts: list[Prompt] = []
        num_skipped = 0
        while len(prompts) < count:
            example = next(self._mixture)
            if self._online_curriculum is not None and not self._online_curriculum.admits(example):
                continue
            with self._phase("decode"):
                loaded = context.clip_loader.load_rows((example,))
            if loaded is None:
                num_skipped += 1
                continue
            (example,) = loaded.rows
            style = rng.choices(self._styles, self._style_weights)[0]
            key = f"{step} {num_sampled + len(prompts)} {example.id}"
            examples.append(example)
            prompts.append(Prompt(prompt_turns(example, style), tuple(loaded.waveforms), key))
        return DrawnPrompts(examples, prompts, num_skipped)

    def _sample(self, step: int, drawn: DrawnPrompts) -> SampledGroups:
        """Sample this process's share of the prompts, compute the rewards, and exchange both with the others."""
        config, context = self._config, self._context
        share = parallel.assigned_items([prompt_tokens(context.model, prompt) for prompt in drawn.prompts])
        self.send_weights(step)
        with self._phase("rollout"):
            prompts = [drawn.prompts[number] for number in share]
            params = self._sampling_params
            if self._pause_threshold is not None:
                params = self._pause_threshold.sampling_params(params)
            generate = partial(self._engine.generate, prompts, params, config.group_size)
            groups, num_server_errors = retry_while_away(generate, self._retry_minutes, context.notify)
            if config.rollout_server:
                groups = accept_sampled(context.model, groups, config.rollout_server)
        with self._phase("reward"):
            if self._adaptive_rewards is not None:
                self._adaptive_rewards.observe(groups, step)
            rewards = self._reward_runner.compute([drawn.examples[number] for number in share], groups)
        stats = parallel.all_gather(rollout_stats(groups, rewards))
        return SampledGroups(
            parallel.gather_assigned(share, groups),
            parallel.gather_assigned(share, rewards.totals),
            stats,
            num_server_errors,
        )

    def send_weights(self, step: int) -> None:
        """Send the weights as they are now to the rollout server, if it is time before the rollout of a step."""
        if self._weight_sync is not None:
            with self._phase("refresh"):
                send = partial(self._weight_sync.before_rollout, step)
                retry_while_away(send, self._retry_minutes, self._context.notify)

    def _replay(self, step: int, sampled: SampledGroups) -> SampledGroups:
        """What a round sampled before the run was interrupted."""
        if self._adaptive_rewards is not None:
            self._adaptive_rewards.observe(sampled.groups, step)
        return sampled

    def _phase(self, name: str) -> AbstractContextManager[None]:
        """A phase of the step; in another thread nothing, since its time is that of the update as well."""
        return nullcontext() if self._in_background else self._context.profiler.phase(name)

    def _rollouts(self, drawn: DrawnPrompts, sampled: SampledGroups) -> list[tuple[Example, Rollout]]:
        """The rollouts of a round; the online curriculum takes in all groups, also those that are left out, and so does
        the threshold of pauses."""
        if self._pause_threshold is not None:
            self._pause_threshold.observe(completion for group in sampled.groups for completion in group)
        if self._online_curriculum is not None:
            for example, group in zip(drawn.examples, sampled.groups, strict=True):
                num_passed = sum(self._passes(example, completion.text) >= 1 for completion in group)
                self._online_curriculum.observe(example, num_passed, len(group))
        return [
            (example, Rollout(example.id, prompt, group, rewards))
            for example, prompt, group, rewards in zip(
                drawn.examples, drawn.prompts, sampled.groups, sampled.rewards, strict=True
            )
            if rewards is not None
        ]

    def _log(self, step: int, example: Example, rollout: Rollout) -> None:
        interval = self._config.log_completions_steps
        if interval and step % interval == 0:
            self._held_samples.append(sample_row(step + 1, example, rollout.completions, rollout.rewards))
        if not self._in_background:
            self.write_held_samples()

    def write_held_samples(self) -> None:
        """Log the samples that were held back while another thread was at work."""
        rows, self._held_samples = self._held_samples, []
        for row in rows:
            self._context.log_sample(row)

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, and the pass rates of the online curriculum."""
        state: dict[str, Any] = {"mixture": self._mixture.state_dict()}
        if self._online_curriculum is not None:
            state["online"] = self._online_curriculum.state_dict()
        if self._pause_threshold is not None:
            state["pause"] = self._pause_threshold.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self._mixture.load_state_dict(state["mixture"])
        if self._online_curriculum is not None:
            self._online_curriculum.load_state_dict(state["online"])
        if self._pause_threshold is not None:
            self._pause_threshold.load_state_dict(state["pause"])


def prompt_tokens(model: AudioLM, prompt: Prompt) -> int:
    """Estimated number of tokens of a prompt, most of which are audio tokens."""
    return TEXT_TOKENS + sum(model.audio_tokens(len(waveform)) for waveform in prompt.waveforms)


def _open_weight_sync(engine: Engine, context: StageContext, config: GrpoConfig) -> WeightSync | None:
    """What sends newer weights to the rollout server; None if the recipe does not ask for it."""
    if config.weight_sync is None:
        return None
    folder = Path(config.weight_sync.folder) if config.weight_sync.folder else context.folder / "sampler"
    return WeightSync(engine, context.model, config.weight_sync.method, config.weight_sync.steps, folder)


def _open_reward_runner(config: GrpoConfig, adaptive_rewards: AdaptiveRewards | None) -> RewardRunner:
    """The rewards of the recipe; the judge and adaptive rewards are bound to their settings."""
    bound_functions: dict[str, RewardFunction] = {}
    if config.judge is not None:
        bound_functions["judge"] = judge_reward(config.judge, config.reward_timeout_s)
    if adaptive_rewards is not None:
        bound_functions |= adaptive_rewards.functions()
    return RewardRunner(
        config.rewards,
        timeout_s=config.reward_timeout_s,
        on_error=config.on_reward_error,
        bound_functions=bound_functions,
    )
