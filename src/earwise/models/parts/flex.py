"""Block-sparse attention over packed token trees, as FlexAttention block masks for CUDA.

Query q sees key k if and only if `k <= q < subtree_ends[k]` (see `earwise.forest`). The queries that see one key thus
form an interval, and a block of keys is classified by two numbers, the largest and the smallest of its subtree ends: is
any of its keys seen by a given later block of queries, and are all of them? So the block mask of a pack takes one
minimum and one maximum per block of keys; no `(seq, seq)` tensor is ever made, and the work is in proportion to the
attended pairs. Only blocks that are partly visible evaluate the condition for every pair.

In a layer with a sliding window the key must also be fewer than `window` positions before the query. A block whose
nearest pair is farther apart is left out, and only one whose farthest pair is within the window is fully visible.

Packs are padded to a power of two, so that a handful of shapes is compiled once each; a padding token sees itself.

Source: FlexAttention (arXiv:2412.05496) as implemented in torch. The condition is that of `Forest.attention_mask`.
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from earwise.forest import Forest

BLOCK = 128
"""Tokens per block of queries and of keys."""
MIN_LENGTH = 1024
"""Shorter packs are padded to this length, so that they share one compiled shape instead of four."""
MAX_COMPILED_VARIANTS = 32
"""Number of compiled variants to keep (lengths, each with and without gradients)."""
MIN_HEAD_DIM = 16
"""Smallest head dimension that the CUDA kernels support."""
MAX_HEAD_DIM = 256
"""Largest head dimension whose tiles fit into the shared memory of the kernels with gradients."""


def padded_length(length: int, min_length: int = MIN_LENGTH) -> int:
    """Length of a pack after padding: the next power of two, at least `min_length`.

    >>> padded_length(300), padded_length(1024), padded_length(5000), padded_length(5, min_length=128)
    (1024, 1024, 8192, 128)
    """
    return max(min_length, 1 << (length - 1).bit_length())


def block_mask(
    subtree_ends: Int[Tensor, "*seq"], block: int = BLOCK, *, positions: Tensor | None = None,
    window: int | None = None,
) -> BlockMask:  # fmt: skip
    """The blocks of keys that each block of queries sees.

    Args:
        subtree_ends: One past the last descendant of each token; a whole number of blocks.
        block: Tokens per block.
        positions: Position of each token in its own sequence; needed if there is a window.
        window: Length of the sliding window in tokens; None for none.
    Raises:
        ValueError: if the length is not a multiple of `block`.
    """
    if len(subtree_ends) % block:
        raise ValueError(f"{len(subtree_ends)} tokens are not a multiple of the block size {block}; pad the pack")
    count = len(subtree_ends) // block
    ends_by_block = subtree_ends.view(count, block)
    first_token = torch.arange(count, device=subtree_ends.device) * block
    is_earlier = first_token[None, :] < first_token[:, None]  # (query block, key block)
    fully_visible = is_earlier & (ends_by_block.amin(1)[None, :] >= first_token[:, None] + block)
    visible = is_earlier & (ends_by_block.amax(1)[None, :] > first_token[:, None])
    # Lambdas, because torch traces them, and the shape checks that tests put around functions cannot be traced.
    mask_mod = lambda batch, head, query, key: (key <= query) & (query < subtree_ends[key])  # noqa: E731
    if window is not None and positions is not None:
        places, positions_by_block = positions, positions.view(count, block)
        nearest = positions_by_block.amin(1)[:, None] - positions_by_block.amax(1)[None, :]
        farthest = positions_by_block.amax(1)[:, None] - positions_by_block.amin(1)[None, :]
        visible, fully_visible = visible & (nearest < window), fully_visible & (farthest < window)
        mask_mod = lambda batch, head, query, key: (  # noqa: E731
            (key <= query) & (query < subtree_ends[key]) & (places[query] - places[key] < window)
        )
    partly_visible = visible & ~fully_visible | torch.eye(count, dtype=torch.bool, device=subtree_ends.device)
    return BlockMask.from_kv_blocks(
        *_block_lists(partly_visible), *_block_lists(fully_visible), BLOCK_SIZE=block, mask_mod=mask_mod
    )


def _block_lists(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the number of True entries, and the column indices with those first, as the kernels read them."""
    columns = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], columns.to(torch.int32)[None, None].contiguous()


class BlockSparseAttention:
    """The `AttentionFn` of a whole packed forest with FlexAttention.

    Args:
        forest: Packed trees.
        compiled: True uses the fused CUDA kernels; False uses torch's eager implementation of the same call, on any
            device (on a CPU without gradients), for tests.
        min_length: See `padded_length`.
    """

    def __init__(self, forest: Forest, *, compiled: bool = True, min_length: int = MIN_LENGTH) -> None:
        self._padding = padded_length(len(forest), min_length) - len(forest)
        padding_ends = torch.arange(len(forest), len(forest) + self._padding, device=forest.subtree_ends.device) + 1
        self._subtree_ends = torch.cat([forest.subtree_ends, padding_ends])
        self._positions = pad(forest.positions, (0, self._padding))
        self._block = min(BLOCK, min_length)
        self._masks: dict[int | None, BlockMask] = {}
        self._run: Callable[..., Tensor] = flex_attention
        if compiled:
            self._run = _compiled()

    def mask(self, window: int | None = None) -> BlockMask:
        """The blocks that layers with this window attend to."""
        if window not in self._masks:
            self._masks[window] = block_mask(self._subtree_ends, self._block, positions=self._positions, window=window)
        return self._masks[window]

    def __call__(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """See `AttentionFn`."""
        length = queries.shape[2]
        mask = self.mask(window)
        if self._padding:
            queries, keys, values = (pad(tensor, (0, 0, 0, self._padding)) for tensor in (queries, keys, values))
        grouped = queries.shape[1] != keys.shape[1]
        attended: Tensor = self._run(queries, keys, values, block_mask=mask, scale=scale, enable_gqa=grouped)
        return attended[:, :, :length]


@cache
def _compiled() -> Callable[..., Tensor]:
    """torch's compiled FlexAttention, one per process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILED_VARIANTS)
    fused: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return fused
