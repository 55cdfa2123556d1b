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

from earwise.models.parts.attention import Attend

KINDS = ("LlamaDecoderLayer", "Qwen2DecoderLayer")
"""transformers' layers with these names have the parts that `_Layer` reads, and nothing else."""
Forward = Callable[..., Tensor]


def knows(layer: Any) -> bool:
    """True for a decoder layer that `forward` computes as a whole."""
    return type(layer).__name__ in KINDS and type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")


def forward(layer: Any, rows: int) -> Forward | None:
    """What may stand for the layer's own `forward` while nothing is trained.

    Args:
        layer: A layer that `knows` knows, a linear layer, or a linear layer with peft's LoRA.
        rows: Up to so many rows go through packed weights, more through the layer itself.
    Returns:
        None if something about the layer is not plain: another dtype than float32, adapters of other kinds.
    """
    if not knows(layer):
        found = _merged(layer)
        return _Linear(layer, _Product([found], rows)) if found is not None else None
    attention, mlp = layer.self_attn, layer.mlp
    groups = (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    products = []
    for group in groups:
        merged = [_merged(part) for part in group]
        whole = [pair for pair in merged if pair is not None]
        if len(whole) < len(merged):
            return None
        products.append(_Product(whole, rows))
    return _Layer(layer, products)


class _Product:
    """`rows @ weight.T + bias` for up to a fixed number of rows; several layers that read the same rows are one."""

    def __init__(self, layers: list[tuple[Tensor, Tensor | None]], rows: int) -> None:
        weights = [weight.detach() for weight, _ in layers]
        weight = weights[0].contiguous() if len(weights) == 1 else torch.cat(weights)
        biases = [bias if bias is not None else weight.new_zeros(len(part)) for part, bias in layers]
        self._bias = torch.cat(biases).detach() if any(bias is not None for _, bias in layers) else None
        self._store = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        self._shape = weight.new_zeros(1).expand(weight.shape)  # read for its shape only
        self.rows = rows

    def __call__(self, rows: Tensor) -> Tensor:
        count = len(rows)
        filled = rows if count == self.rows else functional.pad(rows, (0, 0, 0, self.rows - count))
        out: Tensor = torch.ops.mkl._mkl_linear(filled, self._store, self._shape, self._bias, self.rows)
        return out[:count]


class _Linear:
    """A linear layer."""

    def __init__(self, layer: nn.Module, product: _Product) -> None:
        self._plain: Forward = layer.forward
        self._product = product

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if len(flat) > self._product.rows:
            return self._plain(hidden)
        return self._product(flat).reshape(*hidden.shape[:-1], -1)


class _Layer:
    """A decoder layer: norm, rotary grouped-query attention, norm, gated feed-forward."""

    def __init__(self, layer: Any, products: list[_Product]) -> None:
        self._plain: Forward = layer.forward
        self._qkv, self._out, self._gate_up, self._down = products
        self._norms = [
            (norm.weight, norm.variance_epsilon) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
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
        attend_with: Attend,
        **others: object,
    ) -> Tensor:
        count = hidden_states.shape[-2]
        if count > self._qkv.rows or len(hidden_states) > 1:
            return self._plain(
                hidden_states, position_embeddings=position_embeddings, attend_with=attend_with, **others
            )
        hidden = hidden_states[0]
        mixed = self._qkv(self._normed(hidden, 0)).view(count, -1, self._head)
        turned = mixed[:, : self._heads + self._kv_heads]
        cos, sin = (turn.view(count, 1, self._head) for turn in position_embeddings)
        half = self._head // 2
        swapped = torch.cat((-turned[..., half:], turned[..., :half]), -1)
        turned = torch.addcmul(turned * cos, swapped, sin).transpose(0, 1)[None]
        values = mixed[:, self._heads + self._kv_heads :].transpose(0, 1)[None]
        seen = attend_with(self._index, turned[:, : self._heads], turned[:, self._heads :], values, self._scale)
        hidden = hidden + self._out(seen[0].transpose(0, 1).reshape(count, -1))
        gate, up = self._gate_up(self._normed(hidden, 1)).chunk(2, -1)
        return (hidden + self._down(functional.silu(gate) * up))[None]

    def _normed(self, hidden: Tensor, number: int) -> Tensor:
        weight, epsilon = self._norms[number]
        return functional.rms_norm(hidden, weight.shape, weight, epsilon)


def _merged(layer: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight with LoRA added, and bias; None for what is not plainly that."""
    base = getattr(layer, "base_layer", layer)
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32:
        return None
    if base is layer:
        return base.weight, base.bias
    if list(layer.lora_A) != ["default"] or layer.merged or layer.disable_adapters or layer.use_dora["default"]:
        return None
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return torch.addmm(base.weight, up, down, alpha=layer.scaling["default"]), base.bias
