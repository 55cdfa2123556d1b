"""A forest's attention as FlexAttention block masks, for CUDA: work in proportion to what is seen, no dense mask.

Token q sees token k iff `k <= q < ends[k]` (entry and exit of a depth-first walk, `forest.py`). What a token is seen by
is one interval, so a block of keys needs two numbers to be judged: the largest of its exits (does any query of a later
block see any of its keys?) and the smallest (do all see all?). The block mask of a pack comes from a minimum and a
maximum a block; no `(seq, seq)` tensor exists. Only blocks that are partly seen evaluate the test token by token.

Packs are filled up to a power of two, so that a handful of shapes is compiled once each; a filler token sees itself.

Source: the test is `forest.Forest.attention_mask`'s; kernels are torch's (FlexAttention, arXiv:2412.05496).
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
SHORTEST = 1024
"""Shorter packs are filled up to this: one compiled shape instead of four."""
SHAPES = 32
"""Compiled variants that are kept: lengths, times with and without gradient."""
NARROWEST = 16
"""Smallest width of a head that the CUDA kernels take."""


def filled(length: int, shortest: int = SHORTEST) -> int:
    """Length of a pack after filling up: the next power of two, at least `shortest`.

    >>> filled(300), filled(1024), filled(5000), filled(5, shortest=128)
    (1024, 1024, 8192, 128)
    """
    return max(shortest, 1 << (length - 1).bit_length())


def block_mask(ends: Int[Tensor, "*seq"], block: int = BLOCK) -> BlockMask:
    """Which blocks of keys each block of queries sees, from the exits alone.

    Args:
        ends: Exclusive end of each token's subtree; a whole number of blocks.
        block: Tokens of a block.
    Raises:
        ValueError: if the length is no multiple of `block`.
    """
    if len(ends) % block:
        raise ValueError(f"{len(ends)} tokens are no whole number of blocks of {block}; fill the pack up")
    count = len(ends) // block
    exits = ends.view(count, block)
    first = torch.arange(count, device=ends.device) * block
    earlier = first[None, :] < first[:, None]  # (query block, key block)
    whole = earlier & (exits.amin(1)[None, :] >= first[:, None] + block)
    some = earlier & (exits.amax(1)[None, :] > first[:, None]) & ~whole
    some |= torch.eye(count, dtype=torch.bool, device=ends.device)

    # A lambda, for torch traces it: the shape checks that tests put around named functions do not trace.
    return BlockMask.from_kv_blocks(
        *_listed(some),
        *_listed(whole),
        BLOCK_SIZE=block,
        mask_mod=lambda batch, head, query, key: (key <= query) & (query < ends[key]),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the number of True, and the columns with those first, as the kernels read them."""
    columns = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], columns.to(torch.int32)[None, None].contiguous()


class BlockSparseAttention:
    """`Attend` for a whole packed forest through FlexAttention; trees never see each other by the same test.

    Args:
        forest: What was packed.
        compiled: True for the fused kernels (CUDA); False runs torch's plain implementation of the same call, on any
            device and without gradients on a CPU: for tests.
        shortest: See `filled`.
    """

    def __init__(self, forest: Forest, *, compiled: bool = True, shortest: int = SHORTEST) -> None:
        self._fill = filled(len(forest), shortest) - len(forest)
        fillers = torch.arange(len(forest), len(forest) + self._fill, device=forest.subtree_ends.device) + 1
        self._mask = block_mask(torch.cat([forest.subtree_ends, fillers]), min(BLOCK, shortest))
        self._run: Callable[..., Tensor] = flex_attention
        if compiled:
            self._run = _compiled()

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        length = queries.shape[2]
        if self._fill:
            queries, keys, values = (pad(part, (0, 0, 0, self._fill)) for part in (queries, keys, values))
        grouped = queries.shape[1] != keys.shape[1]
        mixed: Tensor = self._run(queries, keys, values, block_mask=self._mask, scale=scale, enable_gqa=grouped)
        return mixed[:, :, :length]


@cache
def _compiled() -> Callable[..., Tensor]:
    """Torch's compiled FlexAttention, one for the process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    fused: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return fused
