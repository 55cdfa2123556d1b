"""Curriculum: in which order a stage trains on its examples.

Pass rates say how difficult an example is: correct answers out of a number of attempts, as measured by `earwise build
difficulty`. Three orders use them: easy to hard (`EasyToHard`), a fixed band of pass rates (`within_band`), and a band
of pass rates that follow the policy during training (`OnlineBand`). `data/mixture.py` asks `EasyToHard` for the order
of an epoch; the GRPO stage asks `OnlineBand` about every example that it draws.

Source: SARI (arXiv:2504.15900), easy-to-hard curriculum by pass rate. Choices of ours, where the paper is silent: the
order is strict; examples with equal pass rates are shuffled by the seed; each epoch starts again with the easiest
examples.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.errors import DataError
from earwise.types import Example

HISTORY_WEIGHT = 0.5
"""Earlier attempts of an example count at most this many times as much as its newest group of attempts, because the
policy has changed since (value ours)."""


@dataclass(frozen=True, slots=True)
class Band:
    """A range of pass rates, written as pass counts of a number of attempts.

    Attributes:
        low: Smallest pass count in the band.
        high: Largest pass count in the band.
        attempts: Number of attempts that `low` and `high` refer to. Examples with another number of attempts are
            compared by their pass rate.
    """

    low: int = 3
    high: int = 6
    attempts: int = 8

    def contains(self, passes: float, attempts: float) -> bool:
        """Whether the pass rate `passes / attempts` lies in the band; both ends are included."""
        return self.low * attempts <= passes * self.attempts <= self.high * attempts


def pass_count(example: Example) -> tuple[int, int] | None:
    """Pass count and number of attempts that `earwise build difficulty` wrote into an example.

    Returns:
        (passes, attempts), or None for an example that was not measured.
    """
    passes, attempts = example.meta.get("pass_count"), example.meta.get("attempts")
    if isinstance(passes, int) and isinstance(attempts, int) and 0 <= passes <= attempts > 0:
        return passes, attempts
    return None


def pass_rate(example: Example) -> float:
    """Share of attempts that were correct, in [0, 1].

    Raises:
        DataError: if the example has no measured pass count.
    """
    passes, attempts = _require_pass_count(example)
    return passes / attempts


def within_band(examples: Sequence[Example], band: Band) -> list[int]:
    """Select the examples whose pass rate lies in the band.

    Returns:
        Indices into `examples`, ascending.
    Raises:
        DataError: if an example has no measured pass count, or no example is in the band.
    """
    indices = [index for index, example in enumerate(examples) if band.contains(*_require_pass_count(example))]
    if not indices:
        raise DataError(
            f"none of {len(examples)} rows passed {band.low} to {band.high} of {band.attempts} attempts; widen the band"
        )
    return indices


def _require_pass_count(example: Example) -> tuple[int, int]:
    """Pass count and attempts of an example; a DataError with the remedy if it was not measured."""
    counts = pass_count(example)
    if counts is None:
        raise DataError(
            f"example {example.id!r} has no pass_count and attempts to order by; measure the manifest with "
            "`earwise build difficulty`, or use curriculum order shuffled or online"
        )
    return counts


class EasyToHard:
    """Orders each epoch of a data source from the highest pass rate to the lowest.

    Args:
        rates: For each source, the pass rates of its items.
        seed: Seed of the random order among items with equal pass rates.
    """

    def __init__(self, rates: Sequence[Sequence[float]], seed: int) -> None:
        self._rates, self._seed = rates, seed

    def __call__(self, source: int, epoch: int) -> list[int]:
        """Item indices of source number `source`, in the order of epoch number `epoch`."""
        rates = self._rates[source]
        order = list(range(len(rates)))
        random.Random(f"{self._seed}:{source}:{epoch}").shuffle(order)
        order.sort(key=lambda index: -rates[index])
        return order


class OnlineBand:
    """Admits examples whose pass rate is in a band, while the policy's own completions keep the rates up to date.

    The rate of an example starts as it was measured, if it was. Every group of completions that is sampled for it
    counts more than all earlier attempts. Examples without any attempt are admitted; now and then so is one outside the
    band, since a rate that is never measured again stays wrong.

    Args:
        band: Pass rates to train on.
        exploration: Probability of admitting an example outside the band when it is drawn. It must be above 0, because
            otherwise a stream of examples may never yield anything.
        seed: Seed of the exploration.
    """

    def __init__(self, band: Band, exploration: float, seed: int) -> None:
        self._band, self._exploration, self._seed = band, exploration, seed
        self._counts: dict[str, tuple[float, float]] = {}
        self._draws = 0

    def pass_count(self, example: Example) -> tuple[float, float] | None:
        """Weighted passes and attempts of an example, or None if there was no attempt."""
        return self._counts.get(example.id) or pass_count(example)

    def admits(self, example: Example) -> bool:
        """Decide whether a drawn example is trained on. Each call advances the exploration's random sequence."""
        self._draws += 1
        counts = self.pass_count(example)
        if counts is None or self._band.contains(*counts):
            return True
        digest = hashlib.blake2b(f"{self._seed}:{self._draws}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < self._exploration

    def observe(self, example: Example, passes: int, attempts: int) -> None:
        """Update the pass rate of an example with a new group of the policy's completions."""
        previous = self.pass_count(example) or (0.0, 0.0)
        weight = min(1.0, HISTORY_WEIGHT * attempts / previous[1]) if previous[1] else 0.0
        self._counts[example.id] = (weight * previous[0] + passes, weight * previous[1] + attempts)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain JSON values (keys as in the first release, so that old runs resume)."""
        return {"asked": self._draws, "seen": {name: list(counts) for name, counts in self._counts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._draws = int(state["asked"])
        self._counts = {name: (float(passes), float(attempts)) for name, (passes, attempts) in state["seen"].items()}
