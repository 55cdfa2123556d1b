"""In which order a stage sees its examples: pass rates, easy to hard, a band of them, and rates kept up to date.

Between the rows and `data/mixture.py`, which asks `easy_to_hard` for the order of an epoch; `train/run.py` leaves out
what is not in a band, `train/grpo.py` asks `Online` of every row that is drawn. SARI (arXiv 2504.15900;
papers/sari.md, sections 4 and 7). A pass rate is what `earwise build difficulty` measured: right answers of so many
attempts. Choices where the paper is silent: the order is strict, equal rates stand in a random order by seed, a new
epoch starts with the easy ones again.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.errors import DataError
from earwise.types import Example

OLD_WEIGHT = 0.5
"""What was seen of a row before weighs at most so many times its newest group (ours): the policy has moved since."""


@dataclass(frozen=True, slots=True)
class Band:
    """Pass counts from `low` to `high` of `of` attempts; other numbers of attempts are compared by their rate."""

    low: int = 3
    high: int = 6
    of: int = 8

    def holds(self, passes: float, attempts: float) -> bool:
        """Whether a pass rate is in the band, both ends included."""
        return self.low * attempts <= passes * self.of <= self.high * attempts


def measured(example: Example) -> tuple[int, int] | None:
    """Pass count and attempts of a row that `earwise build difficulty` has rated; None of any other."""
    passes, attempts = example.meta.get("pass_count"), example.meta.get("attempts")
    if isinstance(passes, int) and isinstance(attempts, int) and 0 <= passes <= attempts > 0:
        return passes, attempts
    return None


def pass_rate(example: Example) -> float:
    """Share of right attempts, in [0, 1].

    Raises:
        DataError: if the row was not rated.
    """
    passes, attempts = _rated(example)
    return passes / attempts


def within(examples: Sequence[Example], band: Band) -> list[int]:
    """Numbers of the examples whose pass rate is in the band, in their order.

    Raises:
        DataError: if an example was not rated, or none is in the band.
    """
    kept = [number for number, example in enumerate(examples) if band.holds(*_rated(example))]
    if not kept:
        raise DataError(
            f"none of {len(examples)} rows passed {band.low} to {band.high} of {band.of} attempts; widen the band"
        )
    return kept


def _rated(example: Example) -> tuple[int, int]:
    rate = measured(example)
    if rate is None:
        raise DataError(
            f"example {example.id!r} has no pass_count of attempts to order by; rate the manifest with "
            "`earwise build difficulty`, or use curriculum order shuffled or online"
        )
    return rate


class EasyToHard:
    """The order of an epoch of a source: from the highest pass rate to the lowest.

    Args:
        rates: Of each source, the pass rate of each of its items.
        seed: Of the order among equal rates.
    """

    def __init__(self, rates: Sequence[Sequence[float]], seed: int) -> None:
        self._rates, self._seed = rates, seed

    def __call__(self, source: int, epoch: int) -> list[int]:
        rates = self._rates[source]
        order = list(range(len(rates)))
        random.Random(f"{self._seed}:{source}:{epoch}").shuffle(order)
        order.sort(key=lambda number: -rates[number])
        return order


class Online:
    """Keeps to a band of pass rates that the running policy's own groups bring up to date.

    A row's rate starts as it was measured, if it was; each group of samples that is drawn for it counts for more than
    all before. Rows that were never tried are taken; so is, now and then, one outside the band, since a rate that is
    never looked at again stays wrong.

    Args:
        band: What is taken.
        explore: Chance of a row outside the band, per time it comes up; above 0, or a stream may never end.
        seed: Of that chance.
    """

    def __init__(self, band: Band, explore: float, seed: int) -> None:
        self._band, self._explore, self._seed = band, explore, seed
        self._seen: dict[str, tuple[float, float]] = {}
        self._asked = 0

    def rate(self, example: Example) -> tuple[float, float] | None:
        """Passes and attempts as they are weighed now; None of a row that was never tried."""
        return self._seen.get(example.id) or measured(example)

    def admits(self, example: Example) -> bool:
        """Whether a row that has come up is to be trained on; counts the questions, for the chance."""
        self._asked += 1
        rate = self.rate(example)
        if rate is None or self._band.holds(*rate):
            return True
        digest = hashlib.blake2b(f"{self._seed}:{self._asked}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < self._explore

    def observe(self, example: Example, passes: int, attempts: int) -> None:
        """Take in a group of samples of the running policy."""
        before = self.rate(example) or (0.0, 0.0)
        weight = min(1.0, OLD_WEIGHT * attempts / before[1]) if before[1] else 0.0
        self._seen[example.id] = (weight * before[0] + passes, weight * before[1] + attempts)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"asked": self._asked, "seen": {name: list(rate) for name, rate in self._seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._asked = int(state["asked"])
        self._seen = {name: (float(passes), float(attempts)) for name, (passes, attempts) in state["seen"].items()}
