"""Several sets of examples as one endless stream: weighted, seeded, resumable, sharded.

Between `data/manifest.py` and the training loop. Draw number t takes its source by chance, in proportion to the
weights (evened out by a temperature, as T5 mixes tasks: arXiv 1910.10683, section 3.5.2), from a hash of (seed, t);
inside a source the examples come in a fresh random order each epoch (or in the one that a curriculum gives), none twice
before all were seen. All that follows from the number of draws so far, so the state is a few integers, and a resumed
stream goes on as if it had never stopped. Every rank walks the same global stream and keeps each `world_size`-th draw;
their states are equal, so a run may be resumed with another number of ranks.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from earwise.errors import ConfigError, DataError

T = TypeVar("T")

Order = Callable[[int, int], list[int]]
"""Number of a source and epoch -> the order of its examples, each once; the same whenever it is asked."""


class Mixture(Generic[T]):
    """An endless iterator over examples, or over whatever else the sources hold.

    Args:
        sources: Pairs of examples and weight (any positive number; only their proportions count).
        seed: Decides the order.
        rank: Which of the interleaved shards this is, from 0.
        world_size: Number of shards.
        order: Of the examples of a source in an epoch; None is a random one.
        weight_by_size: Weights are per example: a source counts as its weight times the number of its examples.
        temperature: T: a source is drawn in proportion to weight ** (1 / T); 1 is the weights themselves, more is
            evener.

    Raises:
        DataError: if there is no source, or one is empty.
        ConfigError: if a weight is not positive, or `rank` is outside `world_size`.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Sequence[T], float]],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        order: Order | None = None,
        *,
        weight_by_size: bool = False,
        temperature: float = 1.0,
    ) -> None:
        if not sources:
            raise DataError("mixture has no source; name at least one manifest")
        for number, (examples, weight) in enumerate(sources):
            if not examples:
                raise DataError(f"source {number} of the mixture has no examples; leave it out or fill it")
            if not 0 < weight < float("inf"):
                raise ConfigError(f"source {number} of the mixture has weight {weight}; weights must be positive")
        if not 0 < temperature < float("inf"):
            raise ConfigError(f"the mixture has temperature {temperature}; it must be positive")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is outside 0..{world_size - 1}; check rank and world_size")
        self._sources = [examples for examples, _ in sources]
        counted = [float(weight) * (len(examples) if weight_by_size else 1) for examples, weight in sources]
        evened = [(weight / max(counted)) ** (1 / temperature) for weight in counted]
        self._weights = counted if temperature == 1 else evened
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._counts = [0] * len(sources)
        self._given = order
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        drawn = [self._draw() for _ in range(self._world_size)]
        source, index = drawn[self._rank]
        return self._sources[source][index]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; equal on all ranks that have taken equally many examples."""
        return {
            "seed": self._seed,
            "weights": list(self._weights),
            "sizes": [len(examples) for examples in self._sources],
            "counts": list(self._counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: if it was taken with another seed, other weights or sources of other sizes.
        """
        own = self.state_dict()
        for key in ("seed", "weights", "sizes"):
            if state.get(key) != own[key]:
                raise DataError(
                    f"data position was saved with {key} {state.get(key)}, the mixture has {own[key]}; "
                    "resume with the same data, or start a new run"
                )
        counts = state.get("counts")
        if not isinstance(counts, list) or len(counts) != len(own["counts"]):
            raise DataError(f"data position has counts {counts!r:.60}; the checkpoint is damaged, take an earlier one")
        self._counts = [int(count) for count in counts]

    @property
    def epochs(self) -> tuple[float, ...]:
        """How often each source has been gone through."""
        return tuple(count / len(examples) for count, examples in zip(self._counts, self._sources, strict=True))

    def _draw(self) -> tuple[int, int]:
        source = self._source(sum(self._counts))
        epoch, position = divmod(self._counts[source], len(self._sources[source]))
        self._counts[source] += 1
        return source, self._order(source, epoch)[position]

    def _source(self, draw: int) -> int:
        digest = hashlib.blake2b(f"{self._seed}:{draw}".encode(), digest_size=8).digest()
        left = int.from_bytes(digest, "big") / 2**64 * sum(self._weights)
        for source, weight in enumerate(self._weights):
            left -= weight
            if left < 0:
                return source
        return len(self._weights) - 1  # rounding

    def _order(self, source: int, epoch: int) -> list[int]:
        """The epoch's order of a source; only the current one is kept."""
        if self._orders.get(source, (-1, []))[0] != epoch:
            if self._given is not None:
                order = self._given(source, epoch)
            else:
                order = list(range(len(self._sources[source])))
                random.Random(f"{self._seed}:{source}:{epoch}").shuffle(order)
            self._orders[source] = (epoch, order)
        return self._orders[source][1]
