"""Attention over a forest, given to transformers' own decoder classes as an attention function.

`decode` of every family passes an `Attend` through the model; each attention layer hands its queries, keys and values
to it. Whole trees (training) go through `TreeAttention`; a growing tree (sampling) through `engine.local`'s cache. Both
are exact. Whole trees have two kernels: dense masks, one a tree (any device; the yardstick), and FlexAttention's block
masks (`flex.py`; on CUDA, for packs of some length).
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._triton import has_triton
from transformers import AttentionInterface

from earwise.forest import Forest
from earwise.models.parts import flex

IMPLEMENTATION = "earwise_forest"


@runtime_checkable
class AttentionFn(Protocol):
    """What a layer's attention does with `(1, heads, seq, head_dim)` queries and `(1, kv_heads, seq, head_dim)` keys
    and values."""

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Return `(1, heads, seq, head_dim)`."""
        ...


Kernel = Literal["dense", "flex"]


class TreeAttention:
    """Every token of a packed forest attends to its ancestors and its own past; trees never see each other.

    Args:
        forest: What was packed.
        kernel: `dense` or `flex`; None takes `flex` on CUDA where its compiler is there, `dense` elsewhere.
    """

    def __init__(self, forest: Forest, kernel: Kernel | None = None) -> None:
        self._forest = forest
        self.kernel: Kernel = kernel or _fitting(forest)
        self._flex: AttentionFn | None = None
        self._trees: list[tuple[int, int, Tensor]] = []

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        if self.kernel == "flex" and queries.shape[-1] >= flex.NARROWEST:
            self._flex = self._flex or flex.BlockSparseAttention(self._forest, compiled=queries.is_cuda)
            return self._flex(layer, queries, keys, values, scale)
        self._trees = self._trees or _masks(self._forest)
        out = [
            attend(queries[:, :, start:stop], keys[:, :, start:stop], values[:, :, start:stop], mask, scale)
            for start, stop, mask in self._trees
        ]
        return out[0] if len(out) == 1 else torch.cat(out, 2)


def _fitting(forest: Forest) -> Kernel:
    return "flex" if forest.ids.is_cuda and has_triton() else "dense"


def _masks(forest: Forest) -> list[tuple[int, int, Tensor]]:
    """Start, end and dense visibility of each tree."""
    masks = []
    for start, stop in zip(forest.tree_offsets, forest.tree_offsets[1:], strict=False):
        index = torch.arange(start, stop, device=forest.ids.device)
        masks.append(
            (start, stop, (index[None, :] <= index[:, None]) & (index[:, None] < forest.subtree_ends[None, start:stop]))
        )
    return masks


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Scaled dot-product attention with grouped key/value heads; the mask is boolean (True: seen) or a bias."""
    return scaled_dot_product_attention(
        queries, keys, values, mask, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
    )


def _forest_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, *,
    attend_with: AttentionFn, **_: object,
) -> tuple[Tensor, None]:  # fmt: skip
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attend_with(module.layer_idx, query, key, value, scale).transpose(1, 2).contiguous(), None  # type: ignore[arg-type]


AttentionInterface.register(IMPLEMENTATION, _forest_attention)


def decode_packed(decoder: torch.nn.Module, embeddings: Tensor, positions: Tensor, attend_with: AttentionFn) -> Tensor:
    """Run a transformers decoder (without head) over packed tokens.

    Args:
        decoder: A text model whose `config._attn_implementation` is `IMPLEMENTATION`.
        embeddings: `(seq, dim)`.
        positions: `(seq,)` depth of each token.
        attend_with: Attention over the pack.
    Returns:
        `(seq, dim)` after the final norm.
    """
    out = decoder(
        inputs_embeds=embeddings[None], position_ids=positions[None], use_cache=False, attend_with=attend_with
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden
