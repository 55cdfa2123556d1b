"""Rewards of a step's completions: weighed, awaited together, limited in time, and what goes wrong counted.

Between the engine and the advantages. A reward is a function `(example, completion) -> float`, plain or `async`. Those
of our table are pure and called as they are; of others, plain ones run one after the other in a thread of their own,
`async` ones together, each call within the time limit. What failed is worth None here; the recipe's policy says what
becomes of it. A reward that has nothing to judge in a completion may give `Worth.MEAN`.
"""

import asyncio
import inspect
import math
import queue
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, cast

from earwise.algorithms.rewards import REWARDS, load_reward
from earwise.engine.remote.client import run_coroutine
from earwise.errors import ScoringError
from earwise.train.distributed import parallel
from earwise.types import Completion, Example

Policy = Literal["stop", "zero", "skip_group"]
Function = Callable[[Example, str], Any]
AT_ONCE = 32
"""Calls of an `async` reward under way together."""


class Worth(Enum):
    """What a reward may give in place of a number."""

    MEAN = "mean"
    """The mean of the numbers that it gave in this batch: neither better nor worse than the others."""


Value = float | Exception | Worth


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a step's completions earned.

    Attributes:
        totals: For each group the weighted sums; None for a group that is to be left out.
        means: Reward -> its mean over all completions that it could be told of, without its weight.
        errors: Reward -> how often it failed.
        reason: Of the first failure.
    """

    totals: list[list[float] | None]
    means: dict[str, float]
    errors: Counter[str] = field(default_factory=Counter)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tally:
    """What to log of one round of sampling: counts and sums, so that rounds add up."""

    groups: int
    flat: int
    """Groups whose samples all earned the same."""
    completions: int
    judged: int
    """Completions with a verdict."""
    earned: float
    parts: Mapping[str, float]
    """Reward -> its sum, without its weight."""
    tokens: int
    truncated: int
    errors: int


def tally_of(groups: Sequence[Sequence[Completion]], verdicts: Verdicts) -> Tally:
    """Counts of one round."""
    said = [one for group in groups for one in group]
    totals = [total for total in verdicts.totals if total is not None]
    return Tally(
        groups=len(groups),
        flat=sum(max(total) == min(total) for total in totals),
        completions=len(said),
        judged=sum(len(total) for total in totals),
        earned=sum(value for total in totals for value in total),
        parts={name: mean * len(said) for name, mean in verdicts.means.items()},
        tokens=sum(len(one.token_ids) for one in said),
        truncated=sum(one.finish_reason == "length" for one in said),
        errors=verdicts.errors.total(),
    )


def together(tallies: Sequence[Tally]) -> dict[str, float]:
    """Metrics of a step: means over all completions of all its rounds, the share of flat groups, failures."""
    said = max(1, sum(one.completions for one in tallies))
    parts = {
        name.removesuffix("_answer").removesuffix("_r1aqa"): sum(one.parts[name] for one in tallies) / said
        for name in tallies[0].parts
    }
    return parts | {
        "reward": sum(one.earned for one in tallies) / max(1, sum(one.judged for one in tallies)),
        "flat_groups": sum(one.flat for one in tallies) / sum(one.groups for one in tallies),
        "length": sum(one.tokens for one in tallies) / said,
        "truncated": sum(one.truncated for one in tallies) / said,
        "reward_errors": float(sum(one.errors for one in tallies)),
    }


class Bench:
    """The rewards of a stage.

    Args:
        weights: Reward -> weight.
        limit_s: Time for one call of a reward that is not in our table.
        on_error: `stop` raises, `zero` counts 0 for the reward that failed, `skip_group` leaves its group out.
        own: Functions of names that are in no table (the judge).
    Raises:
        ConfigError: if a reward cannot be loaded.
    """

    def __init__(
        self, weights: Mapping[str, float], *, limit_s: float, on_error: Policy,
        own: Mapping[str, Function] | None = None,
    ) -> None:  # fmt: skip
        self._weights, self._limit_s, self._on_error = dict(weights), limit_s, on_error
        given = own or {}
        self._functions: dict[str, Function] = {name: given.get(name) or load_reward(name) for name in weights}

    def judge(self, examples: Sequence[Example], groups: Sequence[Sequence[Completion]]) -> Verdicts:
        """Judge every completion of every group: this process's part of a batch, of which all processes judge theirs.

        Raises:
            ScoringError: if a reward fails and the policy is `stop`; names reward, example and reason.
        """
        items = [(example, one.text) for example, group in zip(examples, groups, strict=True) for one in group]
        given = {name: self._all(name, items) for name in self._functions}
        errors: Counter[str] = Counter()
        reason = ""
        for name, values in given.items():
            for (example, _), value in zip(items, values, strict=True):
                if isinstance(value, Exception):
                    errors[name] += 1
                    said = f"reward {name!r} failed on example {example.id!r} ({type(value).__name__}: {value})"
                    reason = reason or said
                    if self._on_error == "stop":
                        raise ScoringError(f"{said}; mend it, or set on_reward_error: zero or skip_group") from value
        parts = with_means(given)
        totals: list[list[float] | None] = []
        at = 0
        for group in groups:
            rows = [{name: values[number] for name, values in parts.items()} for number in range(at, at + len(group))]
            at += len(group)
            failed = any(isinstance(value, Exception) for row in rows for value in row.values())
            skipped = failed and self._on_error == "skip_group"
            totals.append(None if skipped else [self._total(row) for row in rows])
        told = {name: [v for v in values if not isinstance(v, Exception)] for name, values in parts.items()}
        means = {name: sum(values) / max(1, len(values)) for name, values in told.items()}
        return Verdicts(totals, means, errors, reason)

    def _total(self, row: Mapping[str, float | Exception]) -> float:
        return sum(self._weights[name] * value for name, value in row.items() if not isinstance(value, Exception))

    def _all(self, name: str, items: Sequence[tuple[Example, str]]) -> list[Value]:
        function = self._functions[name]
        if inspect.iscoroutinefunction(function):
            return run_coroutine(_together(function, items, self._limit_s))
        limit = None if name in REWARDS else self._limit_s
        return [_number(_limited(function, example, text, limit)) for example, text in items]


def with_means(given: Mapping[str, Sequence[Value]]) -> dict[str, list[float | Exception]]:
    """What every reward gave, with its mean over all processes in the place of `Worth.MEAN`; 0 where there is no number
    to take a mean of, which tells no completion from another."""
    told = {name: [value for value in values if isinstance(value, float)] for name, values in given.items()}
    sums = parallel.total({name: sum(values) for name, values in told.items()})
    counts = parallel.total({name: float(len(values)) for name, values in told.items()})
    means = {name: sums[name] / max(1.0, counts[name]) for name in given}
    return {name: [means[name] if value is Worth.MEAN else value for value in values] for name, values in given.items()}


def _number(value: object) -> Value:
    if isinstance(value, Exception | Worth):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return ScoringError(f"gave {value!r}, not a finite number")


def _limited(function: Function, example: Example, text: str, limit_s: float | None) -> object:
    """What a plain function gives, or the exception that it ended with; a call over its time is left behind."""
    if limit_s is None:
        return _outcome(function, example, text)
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    threading.Thread(target=lambda: told.put(_outcome(function, example, text)), daemon=True).start()
    try:
        return told.get(timeout=limit_s)
    except queue.Empty:
        return TimeoutError(f"no answer within {limit_s:g} s")


def _outcome(function: Function, example: Example, text: str) -> object:
    try:
        return function(example, text)
    except Exception as error:  # a user's function may raise anything; the policy says what becomes of it
        return error


async def _together(function: Function, items: Sequence[tuple[Example, str]], limit_s: float) -> list[Value]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(example: Example, text: str) -> Value:
        async with gate:
            try:
                called = cast(Awaitable[object], function(example, text))
                return _number(await asyncio.wait_for(called, limit_s))
            except TimeoutError:
                return TimeoutError(f"no answer within {limit_s:g} s")
            except Exception as error:  # as above
                return error

    return list(await asyncio.gather(*(one(example, text) for example, text in items)))
