"""Attention over packed token trees.

`AudioLM.decode` passes an `AttentionFn` through the model, and every attention layer calls it with its queries, keys
and values. Training and scoring use `TreeAttention` on whole trees; sampling uses the KV caches of `engine.kv_cache`
and `engine.static_cache`, which are also `AttentionFn`s. All of them are exact, also in layers with a sliding window.
transformers' decoders are given one by `models.decoders.transformers_decoder`.

Whole trees have two kernels: dense masks, one per tree (any device; the reference), and FlexAttention's block masks
(`models.parts.flex`; on CUDA).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from earwise.forest import Forest

_uses_eager: ContextVar[bool] = ContextVar("uses_eager", default=False)


@runtime_checkable
class AttentionFn(Protocol):
    """Computes the attention of one layer over packed tokens."""

    def __call__(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Attend.

        Args:
            layer: Index of the decoder layer.
            queries: `(1, heads, seq, head_dim)`.
            keys: `(1, kv_heads, seq, head_dim)`.
            values: `(1, kv_heads, seq, head_dim)`.
            scale: Factor on the dot products.
            window: Length of the layer's sliding window: a token sees those of its own sequence that are fewer than
                `window` positions before it. None lets it see all of them.
        Returns:
            `(1, heads, seq, head_dim)`.
        """
        ...


Kernel = Literal["dense", "flex"]


class TreeAttention:
    """Every token of a packed forest attends to itself and its ancestors; trees never see each other.

    Args:
        forest: Packed trees.
        kernel: `dense` or `flex`; None uses `flex` on CUDA if its compiler (Triton) is available, `dense` otherwise.
    """

    def __init__(self, forest: Forest, kernel: Kernel | None = None) -> None:
        self._forest = forest
        self.kernel: Kernel = kernel or _default_kernel(forest)
        self._flex: AttentionFn | None = None
        self._dense_masks: dict[int | None, list[tuple[int, int, Tensor]]] = {}
        """By window: start, end and mask of each tree."""

    def __call__(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """See `AttentionFn`."""
        if self.kernel == "flex":
            from earwise.models.parts import flex  # imports torch's compiler, which nothing else here needs

            if flex.MIN_HEAD_DIM <= queries.shape[-1] <= flex.MAX_HEAD_DIM:
                self._flex = self._flex or flex.BlockSparseAttention(self._forest, compiled=queries.is_cuda)
                return self._flex(layer, queries, keys, values, scale, window)
        if window not in self._dense_masks:
            self._dense_masks[window] = _dense_masks(self._forest, window)
        out = [
            attend(queries[:, :, start:stop], keys[:, :, start:stop], values[:, :, start:stop], mask, scale)
            for start, stop, mask in self._dense_masks[window]
        ]
        return out[0] if len(out) == 1 else torch.cat(out, 2)


def _default_kernel(forest: Forest) -> Kernel:
    """The kernel for the forest's device."""
    if not forest.ids.is_cuda:
        return "dense"
    from torch.utils._triton import has_triton

    return "flex" if has_triton() else "dense"


def _dense_masks(forest: Forest, window: int | None) -> list[tuple[int, int, Tensor]]:
    """Start, end and dense attention mask of each tree."""
    masks = []
    for start, stop in zip(forest.tree_offsets, forest.tree_offsets[1:], strict=False):
        index = torch.arange(start, stop, device=forest.ids.device)
        mask = (index[None, :] <= index[:, None]) & (index[:, None] < forest.subtree_ends[None, start:stop])
        if window is not None and stop - start > window:  # a shorter tree has no longer sequence
            mask &= within_window(forest.positions[start:stop], forest.positions[start:stop], window)
        masks.append((start, stop, mask))
    return masks


def within_window(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """Where a key is fewer than `window` positions before a query, or after it.

    Args:
        query_positions: Position of each query in its own sequence, `(..., queries)`.
        key_positions: Position of each key, `(..., keys)`.
        window: Length of the sliding window, in tokens.
    Returns:
        `(..., queries, keys)`.
    """
    return query_positions[..., :, None] - key_positions[..., None, :] < window


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Scaled dot-product attention with grouped key/value heads.

    Args:
        queries: `(batch, heads, queries, head_dim)`.
        keys: `(batch, kv_heads, keys, head_dim)`.
        values: `(batch, kv_heads, keys, head_dim)`.
        mask: True where a query sees a key, or an additive bias; broadcast to `(batch, heads, queries, keys)`. None
            lets every query see every key.
        scale: Factor on the dot products.
    """
    return scaled_dot_product_attention(
        queries, keys, values, mask, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
    )


@contextmanager
def eager_attention() -> Iterator[None]:
    """Within it, decoders run as transformers runs them on one whole sequence, for checks: eager attention, with the
    positions, the causal mask and the windows of the model's own config, and nothing of a forest."""
    token = _uses_eager.set(True)
    try:
        yield
    finally:
        _uses_eager.reset(token)


def uses_eager_attention() -> bool:
    """True within `eager_attention`."""
    return _uses_eager.get()
