"""Forward passes of decoder layers for a few rows, without gradients: packed weights, fused products. Used by
`packed.py`.

A layer of Llama's or Qwen2's kind does query, key and value in one product and gate and up in another; a lone linear
layer (a head, or any layer of another decoder) is only packed. LoRA is merged into what is packed: kept beside it, as
240 thin products a pass, it made a rollout of 32 tokens slower (3.7 s against 2.7 to 2.9). The operator is the one that
torch's compiler uses for frozen weights; results differ from the plain layers by rounding (1e-6).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earwise.models.parts import lora
from earwise.models.parts.attention import AttentionFn

KINDS = ("LlamaDecoderLayer", "Qwen2DecoderLayer")
"""transformers' layers with these names have the parts that `_Layer` reads, and nothing else."""
Forward = Callable[..., Tensor]
Scratch = dict[tuple[int, int], Tensor]
"""Room for weights with LoRA added, by shape, written over by the next layer: fresh memory costs more than the sum."""


def knows(layer: Any) -> bool:
    """True for a decoder layer that `forward` computes as a whole."""
    return type(layer).__name__ in KINDS and type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")


@torch.no_grad()
def forward(layer: Any, rows: int, scratch: Scratch) -> Forward | None:
    """What may stand for the layer's own `forward` while nothing is trained.

    Args:
        layer: A layer that `knows` knows, a linear layer, or a linear layer with peft's LoRA.
        rows: Up to so many rows go through packed weights, more through the layer itself.
        scratch: Room shared by the layers of one packing; empty at first.
    Returns:
        None if something about the layer is not plain: another dtype than float32, adapters of other kinds.
    """
    if not knows(layer):
        return _Linear(layer, _Product((layer,), rows, scratch)) if _is_plain(layer) else None
    attention, mlp = layer.self_attn, layer.mlp
    groups = (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    products = []
    for group in groups:
        if not all(_is_plain(part) for part in group):
            return None
        products.append(_Product(group, rows, scratch))
    return _Layer(layer, products)


class _Product:
    """`rows @ weight.T + bias` for up to a fixed number of rows; several layers that read the same rows are one."""

    def __init__(self, layers: tuple[Any, ...], rows: int, scratch: Scratch) -> None:
        bases = [getattr(layer, "base_layer", layer) for layer in layers]
        weight = _merged(layers, scratch)
        biases = [base.weight.new_zeros(base.out_features) if base.bias is None else base.bias for base in bases]
        self._bias = torch.cat(biases).detach() if any(base.bias is not None for base in bases) else None
        self._store = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        self._shape = weight.new_zeros(1).expand(weight.shape)  # read for its shape only
        self.rows = rows

    def __call__(self, rows: Tensor) -> Tensor:
        """The product; rows beyond those given hold nothing."""
        out: Tensor = torch.ops.mkl._mkl_linear(self.filled(rows), self._store, self._shape, self._bias, self.rows)
        return out

    def filled(self, rows: Tensor) -> Tensor:
        """As many rows as were packed for; those added are zero."""
        return rows if len(rows) == self.rows else functional.pad(rows, (0, 0, 0, self.rows - len(rows)))


class _Linear:
    """A linear layer."""

    def __init__(self, layer: nn.Module, product: _Product) -> None:
        self._plain: Forward = layer.forward
        self._product = product

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if len(flat) > self._product.rows:
            return self._plain(hidden)
        return self._product(flat)[: len(flat)].reshape(*hidden.shape[:-1], -1)


class _Layer:
    """A decoder layer: norm, rotary grouped-query attention, norm, gated feed-forward."""

    def __init__(self, layer: Any, products: list[_Product]) -> None:
        self._plain: Forward = layer.forward
        self._qkv, self._out, self._gate_up, self._down = products
        norms = [
            (norm.weight, norm.variance_epsilon) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self._norms = [
            (weight * len(weight) ** 0.5, weight.new_tensor(len(weight) * eps).sqrt()) for weight, eps in norms
        ]
        attention = layer.self_attn
        self._index: int = attention.layer_idx
        self._head: int = attention.head_dim
        self._scale: float = attention.scaling
        self._heads = attention.q_proj.out_features // attention.head_dim
        self._kv_heads = attention.k_proj.out_features // attention.head_dim

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attend_with: AttentionFn,
        **others: object,
    ) -> Tensor:
        count = hidden_states.shape[-2]
        if count > self._qkv.rows or len(hidden_states) > 1:
            return self._plain(
                hidden_states, position_embeddings=position_embeddings, attend_with=attend_with, **others
            )
        hidden = self._qkv.filled(hidden_states[0])
        mixed = self._qkv(_normed(hidden, *self._norms[0]))[:count].view(count, -1, self._head)
        turned = mixed[:, : self._heads + self._kv_heads]
        cos, sin = (turn.view(count, 1, self._head) for turn in position_embeddings)
        half = self._head // 2
        swapped = torch.cat((-turned[..., half:], turned[..., :half]), -1)
        turned = torch.addcmul(turned * cos, swapped, sin).transpose(0, 1)[None]
        values = mixed[:, self._heads + self._kv_heads :].transpose(0, 1)[None]
        seen = attend_with(self._index, turned[:, : self._heads], turned[:, self._heads :], values, self._scale)
        hidden = hidden + self._out(seen[0].transpose(0, 1).reshape(count, -1))
        gate, up = self._gate_up(_normed(hidden, *self._norms[1])).chunk(2, -1)
        return (hidden + self._down(functional.silu(gate) * up))[None, :count]


def _normed(rows: Tensor, weight: Tensor, least: Tensor) -> Tensor:
    """Root mean square norm in four operations: `weight` has the root of the width in it, and `least` is the root of
    width times epsilon."""
    return rows * weight / torch.hypot(torch.linalg.vector_norm(rows, dim=-1, keepdim=True), least)


def _is_plain(layer: Any) -> bool:
    """A float32 linear layer, bare or with one LoRA of the usual kind that is switched on."""
    base = getattr(layer, "base_layer", layer)
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32:
        return False
    return base is layer or (lora.is_plain_lora(layer) and not layer.merged and not layer.disable_adapters)


def _merged(layers: tuple[Any, ...], scratch: Scratch) -> Tensor:
    """The weights of layers that read the same rows, LoRA added, one below the other."""
    bases = [getattr(layer, "base_layer", layer) for layer in layers]
    if len(layers) == 1 and bases[0] is layers[0]:
        return bases[0].weight.detach().contiguous()
    heights = [base.out_features for base in bases]
    shape = (sum(heights), bases[0].in_features)
    out = scratch.setdefault(shape, bases[0].weight.new_empty(shape))
    for layer, base, part in zip(layers, bases, out.split(heights), strict=True):
        if base is layer:
            part.copy_(base.weight)
        else:
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            torch.addmm(base.weight, up, down, alpha=layer.scaling["default"], out=part)
    return out
