"""Attention over packed token trees, plugged into transformers' own decoder classes as an attention implementation.

`AudioLM.decode` passes an `AttentionFn` through the model, and every attention layer calls it with its queries, keys
and values. Training and scoring use `TreeAttention` on whole trees; sampling uses the KV caches of `engine.kv_cache`
and `engine.static_cache`, which are also `AttentionFn`s. All of them are exact.

Whole trees have two kernels: dense masks, one per tree (any device; the reference), and FlexAttention's block masks
(`models.parts.flex`; on CUDA).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._triton import has_triton
from transformers import AttentionInterface

from earwise.forest import Forest
from earwise.models.parts import flex

IMPLEMENTATION = "earwise_forest"
_uses_eager: ContextVar[bool] = ContextVar("uses_eager", default=False)


@runtime_checkable
class AttentionFn(Protocol):
    """Computes the attention of one layer over packed tokens."""

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attend.

        Args:
            layer: Index of the decoder layer.
            queries: `(1, heads, seq, head_dim)`.
            keys: `(1, kv_heads, seq, head_dim)`.
            values: `(1, kv_heads, seq, head_dim)`.
            scale: Factor on the dot products.
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
        self._tree_masks: list[tuple[int, int, Tensor]] = []

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See `AttentionFn`."""
        if self.kernel == "flex" and queries.shape[-1] >= flex.MIN_HEAD_DIM:
            self._flex = self._flex or flex.BlockSparseAttention(self._forest, compiled=queries.is_cuda)
            return self._flex(layer, queries, keys, values, scale)
        self._tree_masks = self._tree_masks or _dense_masks(self._forest)
        out = [
            attend(queries[:, :, start:stop], keys[:, :, start:stop], values[:, :, start:stop], mask, scale)
            for start, stop, mask in self._tree_masks
        ]
        return out[0] if len(out) == 1 else torch.cat(out, 2)


def _default_kernel(forest: Forest) -> Kernel:
    """The kernel for the forest's device."""
    return "flex" if forest.ids.is_cuda and has_triton() else "dense"


def _dense_masks(forest: Forest) -> list[tuple[int, int, Tensor]]:
    """Start, end and dense attention mask of each tree."""
    masks = []
    for start, stop in zip(forest.tree_offsets, forest.tree_offsets[1:], strict=False):
        index = torch.arange(start, stop, device=forest.ids.device)
        masks.append(
            (start, stop, (index[None, :] <= index[:, None]) & (index[:, None] < forest.subtree_ends[None, start:stop]))
        )
    return masks


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


def _forest_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, *,
    attend_with: AttentionFn, **_: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: hands the call of a layer to the `AttentionFn` given to the model."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attend_with(module.layer_idx, query, key, value, scale).transpose(1, 2).contiguous(), None  # type: ignore[arg-type]


AttentionInterface.register(IMPLEMENTATION, _forest_attention)


def decode_packed(decoder: torch.nn.Module, embeddings: Tensor, positions: Tensor, attend_with: AttentionFn) -> Tensor:
    """Run a transformers decoder (without head) over packed tokens.

    Args:
        decoder: A text model whose `config._attn_implementation` is `IMPLEMENTATION`.
        embeddings: `(seq, dim)`.
        positions: Position of each token in its own sequence, `(seq,)`.
        attend_with: Attention over the packed tokens.
    Returns:
        Hidden states after the final norm, `(seq, dim)`.
    """
    return run_decoder(decoder, positions, attend_with, inputs_embeds=embeddings[None])


def run_decoder(decoder: Any, positions: Tensor, attend_with: AttentionFn, **inputs: Tensor) -> Tensor:
    """Run a transformers decoder on inputs of its own; see `decode_packed`.

    Args:
        decoder: The text model.
        positions: Position of each token in its own sequence, `(seq,)`.
        attend_with: Attention over the packed tokens.
        **inputs: What the model's forward pass takes in place of token ids, each with a batch dimension of 1.
    """
    if _uses_eager.get():
        with _eager_configs(decoder.config):
            out = decoder(**inputs, use_cache=False)
    else:
        out = decoder(**inputs, position_ids=positions[None], use_cache=False, attend_with=attend_with)
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


@contextmanager
def eager_attention() -> Iterator[None]:
    """Within it, decoders run as transformers runs them on one whole sequence, for checks: eager attention, with the
    positions, the causal mask and the windows of the model's own config, and nothing of a forest."""
    token = _uses_eager.set(True)
    try:
        yield
    finally:
        _uses_eager.reset(token)


@contextmanager
def _eager_configs(config: Any) -> Iterator[None]:
    """Set a config to eager attention. Setting it changes the parts of a config too, so these are restored as well."""
    parts = [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    settings = [(part, part._attn_implementation) for part in (config, *parts)]
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        for part, implementation in settings:
            part._attn_implementation = implementation
