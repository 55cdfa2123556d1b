"""Weighted mixture of data sources: one endless, seeded, resumable stream of examples, sharded over ranks.

Sits between `data/manifest.py` and the training loop. The source of draw number t is chosen at random in proportion to
the weights, from a hash of (seed, t). A temperature can even out the weights, as in T5's task mixing (arXiv:1910.10683,
section 3.5.2). Within a source, each epoch visits every example once, in a new random order or in the order that a
curriculum gives. Everything follows from the number of draws per source, so the state is a few integers and a resumed
stream continues exactly. Every rank iterates over the same global stream and keeps every `world_size`-th draw; the
states of all ranks are equal, so a run may be resumed with another number of ranks.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from earwise.errors import ConfigError, DataError

T = TypeVar("T")

EpochOrder = Callable[[int, int], list[int]]
"""Function of (source number, epoch) that returns a permutation of the source's example indices. It must return the
same permutation every time, because a resumed run calls it again."""


class Mixture(Generic[T]):
    """An endless iterator over the items (usually examples) of several weighted sources.

    Args:
        sources: Pairs of examples and weight. Weights are positive; only their proportions matter.
        seed: Seed of the choice of sources and of the order of the examples.
        rank: Number of this shard of the stream, counted from 0.
        world_size: Number of shards.
        order: Order of a source's examples in an epoch; None draws a random order.
        weight_by_size: Multiply each weight by the number of the source's examples.
        temperature: A source is drawn in proportion to weight ** (1 / temperature). 1 uses the weights as they are;
            higher values make the sources more equally frequent.

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
        order: EpochOrder | None = None,
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
        sized_weights = [float(weight) * (len(examples) if weight_by_size else 1) for examples, weight in sources]
        evened_weights = [(weight / max(sized_weights)) ** (1 / temperature) for weight in sized_weights]
        self._weights = sized_weights if temperature == 1 else evened_weights
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._counts = [0] * len(sources)
        self._epoch_order = order
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        draws = [self._draw() for _ in range(self._world_size)]
        source, index = draws[self._rank]
        return self._sources[source][index]

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream as plain JSON values; equal on all ranks after equally many examples."""
        return {
            "seed": self._seed,
            "weights": list(self._weights),
            "sizes": [len(examples) for examples in self._sources],
            "counts": list(self._counts),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the position that `state_dict` describes.

        Raises:
            DataError: if it was saved with another seed, other weights or sources of other sizes.
        """
        current = self.state_dict()
        for key in ("seed", "weights", "sizes"):
            if state_dict.get(key) != current[key]:
                raise DataError(
                    f"data position was saved with {key} {state_dict.get(key)}, the mixture has {current[key]}; "
                    "resume with the same data, or start a new run"
                )
        counts = state_dict.get("counts")
        if not isinstance(counts, list) or len(counts) != len(current["counts"]):
            raise DataError(f"data position has counts {counts!r:.60}; the checkpoint is damaged, take an earlier one")
        self._counts = [int(count) for count in counts]

    @property
    def epochs(self) -> tuple[float, ...]:
        """Number of passes over each source so far (a fraction within a pass)."""
        return tuple(count / len(examples) for count, examples in zip(self._counts, self._sources, strict=True))

    def _draw(self) -> tuple[int, int]:
        """Advance the global stream by one draw; returns (source number, example index)."""
        source = self._source(sum(self._counts))
        epoch, position = divmod(self._counts[source], len(self._sources[source]))
        self._counts[source] += 1
        return source, self._order(source, epoch)[position]

    def _source(self, draw: int) -> int:
        """Source number of the draw with this number, by inverse transform sampling of the weights."""
        digest = hashlib.blake2b(f"{self._seed}:{draw}".encode(), digest_size=8).digest()
        remaining = int.from_bytes(digest, "big") / 2**64 * sum(self._weights)
        for source, weight in enumerate(self._weights):
            remaining -= weight
            if remaining < 0:
                return source
        return len(self._weights) - 1  # reached only by rounding

    def _order(self, source: int, epoch: int) -> list[int]:
        """Order of a source's examples in an epoch; only the order of the current epoch is cached."""
        if self._orders.get(source, (-1, []))[0] != epoch:
            if self._epoch_order is not None:
                order = self._epoch_order(source, epoch)
            else:
                order = list(range(len(self._sources[source])))
                random.Random(f"{self._seed}:{source}:{epoch}").shuffle(order)
            self._orders[source] = (epoch, order)
        return self._orders[source][1]
