"""Attention over a forest, given to transformers' own decoder classes as an attention function.

`decode` of every family passes an `Attend` through the model; each attention layer hands its queries, keys and values
to it. Whole trees (training) go through `TreeAttention`; a growing tree (sampling) through `engine.local`'s cache. Both
are exact; a CUDA build may take FlexAttention with the same test on indices.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from earwise.forest import Forest

IMPLEMENTATION = "earwise_forest"


@runtime_checkable
class Attend(Protocol):
    """What a layer's attention does with `(1, heads, seq, head_dim)` queries and `(1, kv_heads, seq, head_dim)` keys
    and values."""

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Return `(1, heads, seq, head_dim)`."""
        ...


class TreeAttention:
    """Every token of a packed forest attends to its ancestors and its own past; each tree is computed by itself."""

    def __init__(self, forest: Forest) -> None:
        self._trees = []
        for start, stop in zip(forest.bounds, forest.bounds[1:], strict=False):
            index = torch.arange(start, stop, device=forest.ids.device)
            mask = (index[None, :] <= index[:, None]) & (index[:, None] < forest.ends[None, start:stop])
            self._trees.append((start, stop, mask))

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        out = [
            attend(queries[:, :, start:stop], keys[:, :, start:stop], values[:, :, start:stop], mask, scale)
            for start, stop, mask in self._trees
        ]
        return out[0] if len(out) == 1 else torch.cat(out, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Scaled dot-product attention with grouped key/value heads and a boolean mask (True: seen)."""
    return scaled_dot_product_attention(
        queries, keys, values, mask, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
    )


def _forest_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, *,
    attend_with: Attend, **_: object,
) -> tuple[Tensor, None]:  # fmt: skip
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attend_with(module.layer_idx, query, key, value, scale).transpose(1, 2).contiguous(), None  # type: ignore[arg-type]


AttentionInterface.register(IMPLEMENTATION, _forest_attention)


def decode_packed(decoder: torch.nn.Module, embeddings: Tensor, positions: Tensor, attend_with: Attend) -> Tensor:
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
