"""Replacement forward passes of decoder layers, for a few rows on a CPU without gradients: packed and fused products.

In a layer of Llama's or Qwen2's kind, query, key and value are one product, and so are gate and up. A single linear
layer (an output head, or any linear layer of another decoder) is only packed. LoRA is merged into the packed weights:
computed separately, as 240 thin products per pass, it made a rollout of 32 tokens slower (3.7 s instead of 2.7 to 2.9).

In float32 the operator is `mkl_linear`, which torch's compiler uses for frozen weights; results differ from the
original layers by rounding (1e-6). In bfloat16 and 8-bit integers it is oneDNN's (`models.precision.bfloat16_products`
and `int8_products`), for any number of rows. Used by `models.cpu_decode.prepacked`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from earwise.models.parts import lora
from earwise.models.parts.attention import AttentionFn
from earwise.models.precision.bfloat16_products import multiplication, round_stochastically
from earwise.models.precision.compute import ComputeDtype
from earwise.models.precision.int8_products import Int8Weight
from earwise.models.precision.packed_linear import PackedLinear, is_supported_layer

Forward = Callable[..., Tensor]
Scratch = dict[tuple[int, int], Tensor]
"""Reusable buffers for weights with LoRA added, by shape. Allocating fresh memory costs more than the sum itself."""
EXACT_LOGITS = 64
"""Logits per row that a rounding output head computes anew in float32: the largest."""


class _Product(Protocol):
    """`x @ weight.T + bias` of layers that read the same input, for up to `rows` rows."""

    @property
    def rows(self) -> float:
        """Largest number of rows."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def padded(self, x: Tensor) -> Tensor:
        """The input with as many rows as the product wants."""
        ...


@torch.no_grad()
def packed_forward(layer: Any, rows: int, scratch: Scratch, dtype: ComputeDtype = "float32") -> Forward | None:
    """A replacement for the `forward` of a layer, while nothing is trained.

    Args:
        layer: A supported decoder layer, a linear layer, or a linear layer with PEFT's LoRA.
        rows: Passes of up to this many rows use packed weights; larger ones call the original forward.
        scratch: Buffers shared by the layers of one packing; empty at first.
        dtype: What products are computed in; other than in float32, for any number of rows. In int8 only layers that
            are packed already, and the output head.
    Returns:
        The replacement; None if the layer has another dtype than float32 or LoRA of an unusual kind.
    """

    def product(*layers: Any) -> _Product:
        if isinstance(layers[0], PackedLinear):
            return _SharedProduct(layers)
        return _Bfloat16Product(layers, scratch) if dtype == "bfloat16" else _PackedProduct(layers, rows, scratch)

    if not is_supported_layer(layer):
        if not _is_packable(layer):
            return None
        if dtype != "float32" and _is_head(layer):
            return _RoundingHead(layer, dtype)
        return None if dtype == "int8" else _PackedLinear(layer, product(layer))
    attention, mlp = layer.self_attn, layer.mlp
    groups = (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    parts = [part for group in groups for part in group]
    if not all(map(_is_packable, parts)) and not all(map(_share_product, groups)):
        return None
    return _FusedLayer(layer, [product(*group) for group in groups])


class _PackedProduct:
    """`x @ weight.T + bias` with packed weights, for up to a fixed number of rows.

    Args:
        layers: Linear layers that read the same input; their outputs are concatenated.
        rows: Number of rows that the weights are packed for.
        scratch: See `Scratch`.
    """

    def __init__(self, layers: tuple[Any, ...], rows: int, scratch: Scratch) -> None:
        weight = _merged_weight(layers, scratch)
        self._bias = _joint_bias(layers)
        self._packed_weight = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        self._shape = weight.new_zeros(1).expand(weight.shape)  # the operator reads only the shape of this argument
        self.rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        """The product, `(self.rows, out)`; rows beyond those of `x` are padding."""
        out: Tensor = torch.ops.mkl._mkl_linear(self.padded(x), self._packed_weight, self._shape, self._bias, self.rows)
        return out

    def padded(self, x: Tensor) -> Tensor:
        """The input with zero rows appended up to `self.rows`."""
        return x if len(x) == self.rows else functional.pad(x, (0, 0, 0, self.rows - len(x)))


class _Bfloat16Product:
    """`x @ weight.T + bias` in bfloat16 with float32 input and output, for any number of rows.

    LoRA is merged by stochastic rounding (`round_stochastically`), with a seed that depends on the layer's shape only:
    an update that is smaller than the spacing of bfloat16 numbers arrives on average.

    Args:
        layers: Linear layers that read the same input; their outputs are concatenated.
        scratch: See `Scratch`.
    """

    rows = float("inf")

    def __init__(self, layers: tuple[Any, ...], scratch: Scratch) -> None:
        weight = _merged_weight(layers, scratch)
        has_lora = any(hasattr(layer, "base_layer") for layer in layers)
        rounded = round_stochastically(weight, seed=weight.shape[0]) if has_lora else weight.bfloat16()
        self._multiply = multiplication(rounded)
        self._bias = _joint_bias(layers)

    def __call__(self, x: Tensor) -> Tensor:
        """The product, `(rows, out)`."""
        out = self._multiply(x.bfloat16()).float()
        return out if self._bias is None else out.add_(self._bias)

    def padded(self, x: Tensor) -> Tensor:
        """The input as it is: a row's result does not depend on the number of rows."""
        return x


class _SharedProduct:
    """The product of layers that are packed side by side already, for any number of rows.

    Args:
        layers: Layers that `_share_product`.
    """

    rows = float("inf")

    def __init__(self, layers: tuple[PackedLinear, ...]) -> None:
        self._product = layers[0].product

    def __call__(self, x: Tensor) -> Tensor:
        """The product, `(rows, out)`."""
        return self._product(x)

    def padded(self, x: Tensor) -> Tensor:
        """The input as it is: a row's result does not depend on the number of rows."""
        return x


class _RoundingHead:
    """Replacement `forward` of an output head: logits in bfloat16 or int8, the largest of each row exact.

    Between 16 and 32 bfloat16 numbers are 0.125 apart, too far for log-probabilities. The `EXACT_LOGITS` largest logits
    of a row are computed anew in float32; errors of the others average out in the sum over the vocabulary.

    Args:
        layer: The head; its float32 weights are kept.
        dtype: `bfloat16` or `int8`.
    """

    def __init__(self, layer: nn.Linear, dtype: ComputeDtype) -> None:
        self._weight, self._bias = layer.weight.detach(), layer.bias
        self._logits: Callable[[Tensor], Tensor]
        if dtype == "int8":
            self._logits = Int8Weight(self._weight)
        else:
            multiply = multiplication(self._weight.bfloat16())
            self._logits = lambda rows: multiply(rows.bfloat16()).float()

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = self._logits(flat)
        if self._bias is not None:
            logits += self._bias
        largest = logits.topk(min(EXACT_LOGITS, logits.shape[1]), sorted=False).indices
        exact = torch.einsum("rd,rkd->rk", flat, self._weight[largest])
        if self._bias is not None:
            exact += self._bias[largest]
        return logits.scatter_(1, largest, exact).view(*hidden.shape[:-1], -1)


class _PackedLinear:
    """Replacement `forward` of a linear layer."""

    def __init__(self, layer: nn.Module, product: _Product) -> None:
        self._original: Forward = layer.forward
        self._product = product

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if len(flat) > self._product.rows:
            return self._original(hidden)
        return self._product(flat)[: len(flat)].reshape(*hidden.shape[:-1], -1)


class _FusedLayer:
    """Replacement `forward` of a decoder layer: norm, rotary grouped-query attention, norm, gated feed-forward.

    Args:
        layer: A layer of one of the `SUPPORTED_LAYERS`.
        products: Products of query, key and value; of the attention output; of gate and up; of down.
    """

    def __init__(self, layer: Any, products: list[_Product]) -> None:
        self._original: Forward = layer.forward
        self._qkv, self._out, self._gate_up, self._down = products
        norms = [
            (norm.weight, norm.variance_epsilon) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self._norms = [
            (weight * len(weight) ** 0.5, weight.new_tensor(len(weight) * eps).sqrt()) for weight, eps in norms
        ]
        """For each norm the two constants of `_rms_norm`."""
        attention = layer.self_attn
        self._index: int = attention.layer_idx
        self._head_dim: int = attention.head_dim
        self._scale: float = attention.scaling
        self._window: int | None = attention.sliding_window if type(layer).__name__ == "Qwen2DecoderLayer" else None
        self._heads = attention.q_proj.out_features // attention.head_dim
        self._kv_heads = attention.k_proj.out_features // attention.head_dim

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attend_with: AttentionFn,
        **other_arguments: object,
    ) -> Tensor:
        count = hidden_states.shape[-2]
        if count > self._qkv.rows or len(hidden_states) > 1:
            return self._original(
                hidden_states, position_embeddings=position_embeddings, attend_with=attend_with, **other_arguments
            )
        hidden = self._qkv.padded(hidden_states[0])
        qkv = self._qkv(_rms_norm(hidden, *self._norms[0]))[:count].view(count, -1, self._head_dim)
        # Rotary embedding of queries and keys at once: x * cos + rotate_half(x) * sin.
        qk = qkv[:, : self._heads + self._kv_heads]
        cos, sin = (table.view(count, 1, self._head_dim) for table in position_embeddings)
        half = self._head_dim // 2
        rotated_half = torch.cat((-qk[..., half:], qk[..., :half]), -1)
        qk = torch.addcmul(qk * cos, rotated_half, sin).transpose(0, 1)[None]
        values = qkv[:, self._heads + self._kv_heads :].transpose(0, 1)[None]
        attended = attend_with(
            self._index, qk[:, : self._heads], qk[:, self._heads :], values, self._scale, self._window
        )
        hidden = hidden + self._out(attended[0].transpose(0, 1).reshape(count, -1))
        gate, up = self._gate_up(_rms_norm(hidden, *self._norms[1])).chunk(2, -1)
        return (hidden + self._down(functional.silu(gate) * up))[None, :count]


def _rms_norm(x: Tensor, scaled_weight: Tensor, scaled_eps: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis in four operations.

    Args:
        x: Rows to normalise.
        scaled_weight: Weight of the norm times the square root of the width.
        scaled_eps: Square root of width times epsilon.
    """
    return x * scaled_weight / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), scaled_eps)


def _share_product(layers: tuple[Any, ...]) -> bool:
    """True for layers that are packed side by side, with no other between them."""
    return all(isinstance(layer, PackedLinear) and layer.product is layers[0].product for layer in layers)


def _is_head(layer: Any) -> bool:
    """True for a bare linear layer with so many outputs that it must be an output head."""
    return type(layer) is nn.Linear and layer.out_features >= 16 * layer.in_features


def _joint_bias(layers: tuple[Any, ...]) -> Tensor | None:
    """The biases of layers that read the same input, concatenated; None if no layer has one."""
    bases = [getattr(layer, "base_layer", layer) for layer in layers]
    if all(base.bias is None for base in bases):
        return None
    biases = [base.weight.new_zeros(base.out_features) if base.bias is None else base.bias for base in bases]
    return torch.cat(biases).detach()


def _is_packable(layer: Any) -> bool:
    """True for a float32 linear layer, bare or with one plain LoRA that is enabled and not merged."""
    base = getattr(layer, "base_layer", layer)
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32:
        return False
    return base is layer or (lora.is_plain_lora(layer) and not layer.merged and not layer.disable_adapters)


def _merged_weight(layers: tuple[Any, ...], scratch: Scratch) -> Tensor:
    """The weights of layers that read the same input, concatenated along the outputs, with LoRA added."""
    bases = [getattr(layer, "base_layer", layer) for layer in layers]
    if len(layers) == 1 and bases[0] is layers[0]:
        return bases[0].weight.detach().contiguous()
    heights = [base.out_features for base in bases]
    shape = (sum(heights), bases[0].in_features)
    out = scratch.setdefault(shape, bases[0].weight.new_empty(shape))
    for layer, base, rows in zip(layers, bases, out.split(heights), strict=True):
        if base is layer:
            rows.copy_(base.weight)
        else:
            lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            torch.addmm(base.weight, lora_b, lora_a, alpha=layer.scaling["default"], out=rows)
    return out
