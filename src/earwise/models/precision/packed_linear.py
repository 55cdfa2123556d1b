"""Linear layers that hold packed weights alone, for answering on a CPU: in bfloat16, or in 8-bit integers.

A model that only answers needs no float32 weights beside the packed ones: in bfloat16 it takes half of float32's
memory, in int8 a quarter. Layers that read the same input (query, key and value; gate and up) are packed side by side
as one product, which `models.cpu_decode.fused_layers` computes at once; computed one by one, each takes its columns.

`install` exchanges the layers of a loaded model. It cannot be undone, and nothing that is trained is touched. Whoever
reads weights from files can call `pack` for each layer instead, so that the float32 weights never exist all at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from earwise.models.precision.bfloat16_products import is_suitable, multiplication
from earwise.models.precision.int8_products import Int8Weight

PackedDtype = Literal["bfloat16", "int8"]
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that read the same input, inside a decoder layer that `is_supported_layer`."""
SUPPORTED_LAYERS = ("LlamaDecoderLayer", "Qwen2DecoderLayer")
"""transformers' layer classes, or ours of the same name, that consist of just the parts that are fused."""


class Product(Protocol):
    """Rows times packed weights."""

    def __call__(self, rows: Tensor) -> Tensor:
        """The product `(rows, out)` in float32, for rows `(rows, in)` in float32."""
        ...


class RoundedWeight:
    """Weights in bfloat16, packed; inputs and results are rounded to bfloat16 too, sums are float32.

    Args:
        weight: `(out, in)`, float32; not kept.
        bias: `(out,)`, float32, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._multiply = multiplication(weight.detach().bfloat16())
        self._bias = None if bias is None else bias.detach().clone()

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The product; see `Product`."""
        out = self._multiply(rows.bfloat16()).float()
        return out if self._bias is None else out.add_(self._bias)


class PackedLinear(nn.Module):
    """A linear layer whose output is some columns of a packed product; without gradients.

    Args:
        product: The product, which layers that read the same input share.
        columns: First column and the one behind the last.
        in_features: Width of the input.
    """

    def __init__(self, product: Product, columns: tuple[int, int], in_features: int) -> None:
        super().__init__()
        self.product = product
        self._columns = slice(*columns)
        self.in_features, self.out_features = in_features, columns[1] - columns[0]

    def forward(self, hidden: Tensor) -> Tensor:
        """The layer's output for inputs `(..., in)`."""
        out = self.product(hidden.reshape(-1, hidden.shape[-1]))[:, self._columns]
        return out.reshape(*hidden.shape[:-1], -1)


@torch.no_grad()
def pack(weights: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: PackedDtype) -> list[PackedLinear]:
    """Layers that read the same input, packed side by side.

    Args:
        weights: The weight of each layer, `(out, in)`, float32.
        biases: The bias of each layer.
        dtype: Precision of the packed weights.
    """
    heights = [len(weight) for weight in weights]
    bias = None
    if any(value is not None for value in biases):
        parts = [
            weight.new_zeros(len(weight)) if value is None else value
            for weight, value in zip(weights, biases, strict=True)
        ]
        bias = torch.cat(parts)
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    product: Product = Int8Weight(weight, bias) if dtype == "int8" else RoundedWeight(weight, bias)
    ends = torch.tensor(heights).cumsum(0).tolist()
    return [
        PackedLinear(product, (end - height, end), weight.shape[1]) for end, height in zip(ends, heights, strict=True)
    ]


def pack_by_name(weights: Mapping[str, Tensor], dtype: PackedDtype) -> dict[str, PackedLinear]:
    """Packed layers from weights without biases, by the names of the layers (without `.weight`); those of `SAME_INPUT`
    in one module are packed together."""
    layers: dict[str, PackedLinear] = {}
    for group in _groups([name.removesuffix(".weight") for name in weights]):
        packed = pack([weights[f"{name}.weight"] for name in group], [None] * len(group), dtype)
        layers |= dict(zip(group, packed, strict=True))
    return layers


def install(module: nn.Module, prefixes: tuple[str, ...], dtype: PackedDtype) -> int:
    """Put packed layers in the place of frozen float32 linear layers, for good.

    Args:
        module: The model, on the CPU.
        prefixes: Beginnings of the names of the layers. The output head should not be among them, since its weights
            are often the embeddings too.
        dtype: Precision of the packed weights.
    Returns:
        Number of layers.
    """
    in_supported = _inside_supported_layers(module)
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if f"{name}.".startswith(prefixes) and isinstance(layer, nn.Linear) and is_suitable(layer)
    }
    groups = [*_groups([name for name in layers if name in in_supported])]
    groups += [(name,) for name in layers if name not in in_supported]
    count = len(layers)
    for group in groups:
        members = [layers.pop(name) for name in group]
        packed = pack([layer.weight for layer in members], [layer.bias for layer in members], dtype)
        for name, layer in zip(group, packed, strict=True):
            module.set_submodule(name, layer)
        del members
    return count


def is_supported_layer(layer: Any) -> bool:
    """True for a decoder layer that `cpu_decode.fused_layers` computes as a whole."""
    return type(layer).__name__ in SUPPORTED_LAYERS and type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")


def only_supported_layers(module: nn.Module, prefixes: tuple[str, ...]) -> bool:
    """Whether all linear layers below these prefixes are inside layers that are computed as a whole: then nothing reads
    their weights but the layers themselves."""
    in_supported = _inside_supported_layers(module)
    names = [
        name
        for name, layer in module.named_modules()
        if f"{name}.".startswith(prefixes) and isinstance(layer, nn.Linear)
    ]
    return bool(names) and all(name in in_supported for name in names)


def _inside_supported_layers(module: nn.Module) -> set[str]:
    """Names of the linear layers inside supported decoder layers."""
    return {
        f"{name}.{inner}"
        for name, layer in module.named_modules()
        if is_supported_layer(layer)
        for inner, part in layer.named_modules()
        if isinstance(part, nn.Linear)
    }


def _groups(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Names of layers that are packed together, each name once."""
    left = dict.fromkeys(names)
    for name in names:
        parent, _, last = name.rpartition(".")
        same = next((group for group in SAME_INPUT if last in group), (last,))
        group = tuple(f"{parent}.{other}" if parent else other for other in same)
        members = group if all(member in left for member in group) else (name,)
        if name in left:
            yield members
            for member in members:
                del left[member]
