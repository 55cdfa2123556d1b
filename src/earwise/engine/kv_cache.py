"""KV cache of growing token trees (a radix tree): samples share the keys and values of their common prefix.

Every tree owns one row of slots per layer. The keys and values of a new token go to a free slot of its tree, whichever
branch it is on; an attention mask says which slots each query sees. Two branches share the slots of their common
prefix, so forking a branch copies nothing, and one attention call serves all branches of a tree.

`engine.local` computes the prompts with `TreeCache` (prefill); `engine.decode_loop` then adds tokens step by step.
`engine.static_cache` holds the same layout in buffers of fixed shapes for CUDA graphs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from earwise.models.base import AudioLM
from earwise.models.parts.attention import attend, within_window

SPARE_SLOTS = 32
"""Slots allocated beyond what a pass needs, so that the cache does not grow at every step."""
MAX_RESERVED_BYTES = 1 << 30
"""Largest buffer of all layers that is reserved for tokens to come; beyond it the cache grows as it is filled."""


@dataclass(slots=True)
class StepLayout:
    """Where the tokens of one forward pass belong and what they attend to.

    Queries are arranged per tree as `(trees, queries)`; trees with fewer tokens in the pass are padded.

    Attributes:
        tree_index: Tree of each token, `(tokens,)`.
        query_index: Position of each token among its tree's queries, `(tokens,)`. With one tree: 0, 1, 2, ...
        slot_index: Slot that each token's keys and values are written to, `(tokens,)`.
        mask: `(trees, 1, queries, slots)`, True where a query sees a slot.
    """

    tree_index: Tensor
    query_index: Tensor
    slot_index: Tensor
    mask: Tensor


def next_layout(
    mask: Tensor, tree_index: Tensor, parent_query: Tensor, query_index: Tensor, slot_index: Tensor,
    mask_shape: tuple[int, int], level_sizes: Sequence[int] = (),
) -> StepLayout:  # fmt: skip
    """The layout of a pass whose tokens continue those of the previous pass: each sees what its parent saw, and itself.

    Tokens are ordered by level. Level 0 follows tokens of the previous pass; level 1 (draft tokens) follows level 0 of
    this pass, level 2 follows level 1, and so on.

    Args:
        mask: Mask of the previous pass, `(trees, 1, queries, slots)`.
        tree_index: Tree of each token.
        parent_query: Query index of each token's parent: in the previous pass for level 0, in this pass otherwise.
        query_index: Query index of each token in this pass.
        slot_index: Slot of each token.
        mask_shape: Number of queries and of slots of the new mask.
        level_sizes: Number of tokens per level; empty if all tokens are on level 0.
    """
    new_mask = mask.new_zeros(len(mask), 1, *mask_shape)
    new_mask[..., 0] = True  # a padded query must see something, or its softmax is NaN
    parent_mask, start = mask[..., : mask_shape[1]], 0
    for size in level_sizes or (len(tree_index),):
        level = slice(start, start + size)
        inherited = parent_mask[tree_index[level], 0, parent_query[level]]
        new_mask[tree_index[level], 0, query_index[level], : parent_mask.shape[-1]] = inherited
        new_mask[tree_index[level], 0, query_index[level], slot_index[level]] = True
        parent_mask, start = new_mask, start + size
    return StepLayout(tree_index, query_index, slot_index, new_mask)


class TreeCache:
    """Keys and values in buffers that grow; the `AttentionFn` of the pass that `begin` announced.

    The number of trees is that of the first pass.
    """

    def __init__(self) -> None:
        self._min_slots = 0
        self._keys: list[Tensor] = []
        """Per layer `(trees, kv_heads, slots, head_dim)`."""
        self._values: list[Tensor] = []
        self._layout: StepLayout | None = None
        self._biases: dict[int | None, Tensor] = {}
        """By sliding window: the mask as an additive bias, shared by all layers of a pass."""
        self.slot_positions: Tensor | None = None
        """Position of the token in each slot, `(trees, slots)`; None for decoders without sliding windows."""

    def begin(self, layout: StepLayout) -> None:
        """Set the layout of the next forward pass."""
        self._layout, self._biases = layout, {}

    @property
    def mask(self) -> Tensor:
        """Mask of the last pass, `(trees, 1, queries, slots)`."""
        assert self._layout is not None, "begin() comes before the forward pass"
        return self._layout.mask

    def reserve(self, slots: int) -> None:
        """Allocate at least this many slots at first, so that nothing that was computed is moved before they are full.

        A cache that grows holds each layer twice while it is copied, and leaves the allocator with blocks that are too
        small to be used again: 6,144 tokens of the embedded model took 605 MB, their keys and values are 283 MB.
        """
        self._min_slots = max(self._min_slots, slots)

    @property
    def bytes_per_slot(self) -> int:
        """Size of one token's keys and values in all layers."""
        slots = [len(keys) * keys.shape[2] for keys in self._keys]
        return sum(2 * keys.nbytes // count for keys, count in zip(self._keys, slots, strict=True))

    def pop_layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Hand over keys and values layer by layer, and release them here."""
        while self._keys:
            yield self._keys.pop(0), self._values.pop(0)

    def advance(self, model: AudioLM, ids: Tensor, positions: Tensor, layout: StepLayout) -> Tensor:
        """Compute a decoding pass.

        Args:
            model: Model that decodes.
            ids: Token ids, `(tokens,)`.
            positions: Position of each token in its sequence, `(tokens,)`.
            layout: Trees, slots and mask of the pass.
        Returns:
            Logits of the token that follows each one, `(tokens, vocab)`.
        """
        self.begin(layout)
        return model.logits(model.decode(model.embed(ids), positions, self))

    def select_trees(self, trees: Tensor) -> None:
        """Keep only these trees, renumbered in this order."""
        if self._layout is not None:
            self._layout = replace(self._layout, mask=self._layout.mask[trees])
        used = 0 if self._layout is None else self._layout.mask.shape[-1]
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = _zeros(buffer, (len(trees), *buffer.shape[1:]))
                buffers[layer][:, :, :used] = buffer[trees, :, :used]
        if self.slot_positions is not None:
            self.slot_positions = self.slot_positions[trees]

    def __call__(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Store the pass's keys and values and attend to all slots that the mask allows; see `AttentionFn`."""
        layout = self._layout
        assert layout is not None, "begin() comes before the forward pass"
        used = layout.mask.shape[-1]
        if layer == len(self._keys):
            shape = (layout.mask.shape[0], keys.shape[1], max(used, self._min_slots) + SPARE_SLOTS, keys.shape[3])
            self._keys.append(_zeros(keys, shape))
            self._values.append(_zeros(keys, shape))
        if self._keys[layer].shape[2] < used:
            extra = max(SPARE_SLOTS, used - self._keys[layer].shape[2], self._keys[layer].shape[2] // 4)
            self._keys[layer] = torch.nn.functional.pad(self._keys[layer], (0, 0, 0, extra))
            self._values[layer] = torch.nn.functional.pad(self._values[layer], (0, 0, 0, extra))
        bias = self._bias_of(layout, window, queries)
        cached_keys, cached_values = self._keys[layer][:, :, :used], self._values[layer][:, :, :used]
        if len(layout.mask) == 1:  # one tree: its tokens are its queries, in order, and need no rearranging
            self._keys[layer][0].index_copy_(1, layout.slot_index, keys[0])
            self._values[layer][0].index_copy_(1, layout.slot_index, values[0])
            return attend(queries, cached_keys, cached_values, bias, scale)
        tree_index, query_index, slot_index = layout.tree_index, layout.query_index, layout.slot_index
        self._keys[layer][tree_index, :, slot_index] = keys[0].transpose(0, 1)
        self._values[layer][tree_index, :, slot_index] = values[0].transpose(0, 1)
        by_tree = queries.new_zeros(layout.mask.shape[0], queries.shape[1], layout.mask.shape[2], queries.shape[3])
        by_tree[tree_index, :, query_index] = queries[0].transpose(0, 1)
        attended = attend(by_tree, cached_keys, cached_values, bias, scale)
        return attended[tree_index, :, query_index].transpose(0, 1)[None]

    def _bias_of(self, layout: StepLayout, window: int | None, like: Tensor) -> Tensor:
        """The additive bias of a layer with this window, in the type of a tensor."""
        if window not in self._biases or self._biases[window].dtype != like.dtype:
            mask = layout.mask
            if window is not None:
                self.slot_positions = _grown(self.slot_positions, mask)
                mask = mask & window_mask(layout, self.slot_positions, window)
            self._biases[window] = like.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        return self._biases[window]


def window_mask(layout: StepLayout, slot_positions: Tensor, window: int) -> Tensor:
    """Which slots are within the sliding window of each query, whether it sees them or not.

    A query sees exactly the tokens of its own sequence up to itself, so their number is its position plus one.

    Args:
        layout: The pass.
        slot_positions: Position of the token in each slot, `(trees, slots)`, with at least as many slots as the pass;
            those of the pass are written here.
        window: Length of the window in tokens.
    Returns:
        `(trees, 1, queries, slots)`.
    """
    query_positions = layout.mask[:, 0].sum(-1) - 1
    slot_positions[layout.tree_index, layout.slot_index] = query_positions[layout.tree_index, layout.query_index]
    return within_window(query_positions, slot_positions[: len(layout.mask), : layout.mask.shape[-1]], window)[:, None]


def _grown(slot_positions: Tensor | None, mask: Tensor) -> Tensor:
    """The positions of the slots, with room for all slots of a mask."""
    if slot_positions is None:
        return torch.zeros(len(mask), mask.shape[-1] + SPARE_SLOTS, dtype=torch.long, device=mask.device)
    missing = mask.shape[-1] - slot_positions.shape[1]
    return slot_positions if missing <= 0 else torch.nn.functional.pad(slot_positions, (0, missing + SPARE_SLOTS))


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of the type of a tensor. On a CPU they take memory only where something is written (`calloc`)."""
    if like.device.type == "cpu" and like.dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, np.float32))
    return like.new_zeros(tuple(shape))
