"""Keys and values of growing trees: forking a branch copies nothing.

Every tree owns one row of slots per layer. A token's keys and values go to the next free slot of its tree, whichever
branch it belongs to; a state remembers which slots it sees. Two branches that part share all slots up to the fork.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from earwise.models.base import AudioLM
from earwise.models.parts.attention import attend

ROOM = 32  # slots added beyond what a pass needs


@dataclass(slots=True)
class Step:
    """Where the tokens of one forward pass go and what they see.

    Attributes:
        rows: Tree of each token.
        columns: Place of each token among its tree's queries; with one tree, in order.
        slots: Slot of each token's keys and values.
        mask: `(trees, 1, queries, slots)`, True where seen.
    """

    rows: Tensor
    columns: Tensor
    slots: Tensor
    mask: Tensor


def following(
    mask: Tensor, rows: Tensor, parents: Tensor, columns: Tensor, slots: Tensor, shape: tuple[int, int],
    levels: Sequence[int] = (),
) -> Step:  # fmt: skip
    """The step that computes further tokens: each sees what the token before it saw, and itself.

    Args:
        mask: Of the step before, `(trees, 1, queries, slots)`.
        rows: Tree of each token.
        parents: Place that the token before it had among the queries of `mask`, or, beyond the first level, has among
            those of this step.
        columns: Its own place among its tree's queries.
        slots: Its slot.
        shape: Queries and slots of the new mask.
        levels: How many tokens follow one of the step before, how many follow those, and so on; all of them follow the
            step before if nothing is said.
    """
    seen = mask.new_zeros(len(mask), 1, *shape)
    seen[..., 0] = True  # a row of padding must see something
    before, start = mask[..., : shape[1]], 0
    for count in levels or (len(rows),):
        some = slice(start, start + count)
        seen[rows[some], 0, columns[some], : before.shape[-1]] = before[rows[some], 0, parents[some]]
        seen[rows[some], 0, columns[some], slots[some]] = True
        before, start = seen, start + count
    return Step(rows, columns, slots, seen)


class TreeCache:
    """Slots of the trees that the first pass brings; implements `Attend` for the step set by `begin`."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._step: Step | None = None
        self._bias: Tensor | None = None

    def begin(self, step: Step) -> None:
        """Say where the tokens of the next forward pass belong."""
        self._step, self._bias = step, None

    @property
    def mask(self) -> Tensor:
        """What the tokens of the last step see, `(trees, 1, queries, slots)`."""
        assert self._step is not None, "begin() comes before the forward pass"
        return self._step.mask

    def layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Hand over keys and values layer by layer; they are let go here."""
        while self._keys:
            yield self._keys.pop(0), self._values.pop(0)

    def advance(self, model: AudioLM, ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        """Compute one token of every state; returns scores `(states, vocab)` of the next."""
        self.begin(step)
        return model.logits(model.decode(model.embed(ids), positions, self))

    def keep(self, rows: Tensor) -> None:
        """Drop all trees but these, renumbered in this order."""
        if self._step is not None:
            self._step = replace(self._step, mask=self._step.mask[rows])
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        step = self._step
        assert step is not None, "begin() comes before the forward pass"
        used = step.mask.shape[-1]
        if layer == len(self._keys):
            shape = (step.mask.shape[0], keys.shape[1], used + ROOM, keys.shape[3])
            self._keys.append(keys.new_zeros(shape))
            self._values.append(keys.new_zeros(shape))
        if self._keys[layer].shape[2] < used:
            room = max(ROOM, used - self._keys[layer].shape[2], self._keys[layer].shape[2] // 4)
            self._keys[layer] = torch.nn.functional.pad(self._keys[layer], (0, 0, 0, room))
            self._values[layer] = torch.nn.functional.pad(self._values[layer], (0, 0, 0, room))
        if self._bias is None or self._bias.dtype != queries.dtype:
            self._bias = queries.new_zeros(step.mask.shape).masked_fill_(~step.mask, -torch.inf)
        seen_keys, seen_values = self._keys[layer][:, :, :used], self._values[layer][:, :, :used]
        if len(step.mask) == 1:  # one tree: its tokens are its columns, in order
            self._keys[layer][0].index_copy_(1, step.slots, keys[0])
            self._values[layer][0].index_copy_(1, step.slots, values[0])
            return attend(queries, seen_keys, seen_values, self._bias, scale)
        self._keys[layer][step.rows, :, step.slots] = keys[0].transpose(0, 1)
        self._values[layer][step.rows, :, step.slots] = values[0].transpose(0, 1)
        grid = queries.new_zeros(step.mask.shape[0], queries.shape[1], step.mask.shape[2], queries.shape[3])
        grid[step.rows, :, step.columns] = queries[0].transpose(0, 1)
        mixed = attend(grid, seen_keys, seen_values, self._bias, scale)
        return mixed[step.rows, :, step.columns].transpose(0, 1)[None]
