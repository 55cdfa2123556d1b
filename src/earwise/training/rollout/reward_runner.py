"""Runs the rewards of a step's completions: weighted, with a time limit, and with failures counted.

Used by GRPO between sampling and advantages. A reward is a function `(example, completion) -> float`, plain or `async`.
Rewards of our own table are pure and called directly. Of the others, plain functions run one after the other in a
thread of their own, `async` functions concurrently; each call has a time limit. What happens to a failed reward is
decided by the recipe (`on_reward_error`). A reward that has nothing to judge in a completion may return
`NeutralReward.BATCH_MEAN`.
"""

import asyncio
import inspect
import math
import queue
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, cast

from earwise.algorithms.rewards import REWARDS, load_reward
from earwise.config.resolve import own_code_location
from earwise.engine.remote.client import run_coroutine
from earwise.errors import ScoringError
from earwise.training.distributed import parallel
from earwise.types import Completion, Example

OnRewardError = Literal["stop", "zero", "skip_group"]
RewardFunction = Callable[[Example, str], Any]
MAX_CONCURRENT_CALLS = 32
"""Calls of an `async` reward that run at the same time."""


class NeutralReward(Enum):
    """What a reward function may return instead of a number."""

    BATCH_MEAN = "mean"
    """The mean of the numbers that the reward gave in this batch."""


RewardValue = float | Exception | NeutralReward


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """Rewards of groups of completions.

    Attributes:
        totals: For each group the weighted sum of the rewards of each completion; None for a group to leave out.
        means: Reward -> mean of its unweighted values, without failed calls.
        errors: Reward -> number of failed calls.
        reason: Description of the first failure.
    """

    totals: list[list[float] | None]
    means: dict[str, float]
    errors: Counter[str] = field(default_factory=Counter)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RolloutStats:
    """Counts and sums of one round of sampling, from which the metrics of a step are computed (`step_metrics`)."""

    groups: int
    flat: int
    """Groups whose completions all have the same reward."""
    completions: int
    rewarded: int
    """Completions that have a reward."""
    reward_sum: float
    part_sums: Mapping[str, float]
    """Reward -> sum of its unweighted values."""
    lengths: tuple[int, ...]
    """Tokens of each completion."""
    truncated: tuple[bool, ...]
    """Whether each completion was cut at the largest length."""
    errors: int


def rollout_stats(groups: Sequence[Sequence[Completion]], rewards: GroupRewards) -> RolloutStats:
    """Statistics of a round of sampling from its completions and rewards."""
    completions = [completion for group in groups for completion in group]
    totals = [total for total in rewards.totals if total is not None]
    return RolloutStats(
        groups=len(groups),
        flat=sum(max(total) == min(total) for total in totals),
        completions=len(completions),
        rewarded=sum(len(total) for total in totals),
        reward_sum=sum(value for total in totals for value in total),
        part_sums={name: mean * len(completions) for name, mean in rewards.means.items()},
        lengths=tuple(len(completion.token_ids) for completion in completions),
        truncated=tuple(completion.finish_reason == "length" for completion in completions),
        errors=rewards.errors.total(),
    )


def step_metrics(stats: Sequence[RolloutStats]) -> dict[str, float]:
    """Metrics of a step: means over all completions of all rounds and processes, share of flat groups, failures.

    Args:
        stats: Statistics of each round and process.
    """
    num_completions = max(1, sum(round_stats.completions for round_stats in stats))
    keys = reward_keys(stats[0].part_sums)
    parts = {
        key: sum(round_stats.part_sums[name] for round_stats in stats) / num_completions for name, key in keys.items()
    }
    num_rewarded = max(1, sum(round_stats.rewarded for round_stats in stats))
    metrics = {
        "reward": sum(round_stats.reward_sum for round_stats in stats) / num_rewarded,
        "flat_groups": sum(round_stats.flat for round_stats in stats) / sum(s.groups for s in stats),
        **_length_metrics(stats),
        "reward_errors": float(sum(round_stats.errors for round_stats in stats)),
    }
    return {f"{key}_reward" if key in metrics else key: mean for key, mean in parts.items()} | metrics


def _length_metrics(stats: Sequence[RolloutStats]) -> dict[str, float]:
    """Lengths of the completions in tokens: mean, smallest, largest and, if there are any, mean of those that ended by
    themselves; share of those that did not."""
    lengths = [length for round_stats in stats for length in round_stats.lengths] or [0]
    truncated = [flag for round_stats in stats for flag in round_stats.truncated] or [False]
    ended = [length for length, flag in zip(lengths, truncated, strict=True) if not flag]
    metrics = {
        "length": sum(lengths) / len(lengths),
        "length_min": float(min(lengths)),
        "length_max": float(max(lengths)),
        "truncated": sum(truncated) / len(truncated),
    }
    return metrics | ({"terminated_length": sum(ended) / len(ended)} if ended else {})


def reward_keys(names: Iterable[str]) -> dict[str, str]:
    """The log key of each reward of a stage, no two of them equal.

    A reward of our table is logged without the endings `_answer` and `_r1aqa`, unless two rewards would get the same
    key: these keep their full names, as every user's `module:function` does.

    Args:
        names: Names of the rewards.

    Example:
        >>> reward_keys(["accuracy_r1aqa", "format_r1aqa", "format_answer"])
        {'accuracy_r1aqa': 'accuracy', 'format_r1aqa': 'format_r1aqa', 'format_answer': 'format_answer'}
    """
    short = {name: name if ":" in name else name.removesuffix("_answer").removesuffix("_r1aqa") for name in names}
    counts = Counter(short.values())
    return {name: key if counts[key] == 1 else name for name, key in short.items()}


class RewardRunner:
    """Computes the rewards of a stage.

    Args:
        weights: Reward -> weight in the sum.
        timeout_s: Time limit, in seconds, for one call of a reward that is not in our table.
        on_error: On a failed call: `stop` raises, `zero` counts 0 for that reward, `skip_group` leaves the completion's
            group out.
        bound_functions: Functions for names that need settings (the judge, adaptive rewards).
    Raises:
        ConfigError: if a reward cannot be loaded.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        timeout_s: float,
        on_error: OnRewardError,
        bound_functions: Mapping[str, RewardFunction] | None = None,
    ) -> None:
        self._weights, self._timeout_s, self._on_error = dict(weights), timeout_s, on_error
        bound = bound_functions or {}
        self._functions: dict[str, RewardFunction] = {name: bound.get(name) or load_reward(name) for name in weights}

    def compute(self, examples: Sequence[Example], groups: Sequence[Sequence[Completion]]) -> GroupRewards:
        """Compute the rewards of every completion of every group.

        Args:
            examples: The row of each group.
            groups: Completions of this process; all processes must call.
        Raises:
            ScoringError: if a call fails and `on_error` is `stop`; names reward, example and reason.
        """
        items = [
            (example, completion.text) for example, group in zip(examples, groups, strict=True) for completion in group
        ]
        values_by_reward = {name: self._call(name, items) for name in self._functions}
        errors, reason = self._count_errors(values_by_reward, items)
        parts = replace_batch_means(values_by_reward)
        totals: list[list[float] | None] = []
        start = 0
        for group in groups:
            rows = [
                {name: values[number] for name, values in parts.items()} for number in range(start, start + len(group))
            ]
            start += len(group)
            has_error = any(isinstance(value, Exception) for row in rows for value in row.values())
            skip = has_error and self._on_error == "skip_group"
            totals.append(None if skip else [self._weighted_sum(row) for row in rows])
        numbers = {name: [value for value in values if isinstance(value, float)] for name, values in parts.items()}
        means = {name: sum(values) / max(1, len(values)) for name, values in numbers.items()}
        return GroupRewards(totals, means, errors, reason)

    def _count_errors(
        self, values_by_reward: Mapping[str, Sequence[RewardValue]], items: Sequence[tuple[Example, str]]
    ) -> tuple[Counter[str], str]:
        """Failed calls of each reward, and the description of the first one; raises it if the recipe says so."""
        errors: Counter[str] = Counter()
        reason = ""
        for name, values in values_by_reward.items():
            for (example, _), value in zip(items, values, strict=True):
                if isinstance(value, Exception):
                    errors[name] += 1
                    message = f"reward {name!r} failed on example {example.id!r} ({_describe_error(value)})"
                    reason = reason or message
                    if self._on_error == "stop":
                        raise ScoringError(
                            f"{message}; repair it, or set on_reward_error: zero or skip_group"
                        ) from value
        return errors, reason

    def _weighted_sum(self, row: Mapping[str, float | Exception]) -> float:
        """Reward of one completion, from its unweighted parts; failed parts count 0."""
        return sum(self._weights[name] * value for name, value in row.items() if not isinstance(value, Exception))

    def _call(self, name: str, items: Sequence[tuple[Example, str]]) -> list[RewardValue]:
        """Call a reward on every completion."""
        function = self._functions[name]
        if inspect.iscoroutinefunction(function):
            return run_coroutine(_call_concurrently(function, items, self._timeout_s))
        timeout_s = None if name in REWARDS else self._timeout_s
        return [_as_value(_call_with_timeout(function, example, text, timeout_s)) for example, text in items]


def replace_batch_means(
    values_by_reward: Mapping[str, Sequence[RewardValue]],
) -> dict[str, list[float | Exception]]:
    """Replace `NeutralReward.BATCH_MEAN` by the reward's mean over all processes, or 0 if it gave no number at all."""
    numbers = {
        name: [value for value in values if isinstance(value, float)] for name, values in values_by_reward.items()
    }
    sums = parallel.all_sum({name: sum(values) for name, values in numbers.items()})
    counts = parallel.all_sum({name: float(len(values)) for name, values in numbers.items()})
    means = {name: sums[name] / max(1.0, counts[name]) for name in values_by_reward}
    return {
        name: [means[name] if value is NeutralReward.BATCH_MEAN else value for value in values]
        for name, values in values_by_reward.items()
    }


def _as_value(result: object) -> RewardValue:
    """The result of a call as a reward value; anything but a finite number is an error."""
    if isinstance(result, Exception | NeutralReward):
        return result
    if isinstance(result, int | float) and math.isfinite(result):
        return float(result)
    return ScoringError(f"returned {result!r}, not a finite number")


def _describe_error(error: Exception) -> str:
    """Type and message of an exception, and for a user's own function its place in the user's file."""
    place, _ = own_code_location(error)
    return f"{type(error).__name__}: {error}" + (f", at {place}" if place else "")


def _call_with_timeout(function: RewardFunction, example: Example, text: str, timeout_s: float | None) -> object:
    """Result of a plain function, or the exception it raised. A call that exceeds its time is abandoned in its
    thread."""
    if timeout_s is None:
        return _call_safely(function, example, text)
    results: queue.SimpleQueue[object] = queue.SimpleQueue()
    threading.Thread(target=lambda: results.put(_call_safely(function, example, text)), daemon=True).start()
    try:
        return results.get(timeout=timeout_s)
    except queue.Empty:
        return TimeoutError(f"no answer within {timeout_s:g} s")


def _call_safely(function: RewardFunction, example: Example, text: str) -> object:
    """Result of a function, or the exception it raised."""
    try:
        return function(example, text)
    except Exception as error:  # a user's function may raise anything; the recipe decides what happens
        return error


async def _call_concurrently(
    function: RewardFunction, items: Sequence[tuple[Example, str]], timeout_s: float
) -> list[RewardValue]:
    """Results of an `async` function on all items, at most `MAX_CONCURRENT_CALLS` at a time."""
    semaphore = asyncio.Semaphore(MAX_CONCURRENT_CALLS)

    async def call(example: Example, text: str) -> RewardValue:
        async with semaphore:
            try:
                awaitable = cast(Awaitable[object], function(example, text))
                return _as_value(await asyncio.wait_for(awaitable, timeout_s))
            except TimeoutError:
                return TimeoutError(f"no answer within {timeout_s:g} s")
            except Exception as error:  # as in `_call_safely`
                return error

    return list(await asyncio.gather(*(call(example, text) for example, text in items)))
