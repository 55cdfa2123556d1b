"""Frozen linear layers in 8-bit integers, for answering on a CPU: a quarter of float32's bytes, and fewer to read.

A weight has one scale for each output, and a row of the input one scale of its own, found when it comes (dynamic
quantization with symmetric ranges): `x @ W.T` becomes an integer product, multiplied by both scales in float32. The
product is oneDNN's, packed once; processors with VNNI add four products of bytes at a time. Without VNNI its 16-bit
sums could overflow, so inputs take 7 bits there. (fbgemm's product was a third faster for one row, but needs torch's
quantized tensors, which are deprecated.)

`install` puts `Int8Linear` in the place of the linear layers and lets their float32 weights go, so it cannot be undone
and nothing that is trained is touched. Decoding fuses them (`models.cpu_decode.fused_layers`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from earwise.models.precision.bfloat16_products import is_suitable

ZERO = 128
"""The byte of an input that is 0: oneDNN's products are fastest for unsigned inputs."""
LARGEST_WITH_VNNI, LARGEST_WITHOUT_VNNI = 127, 63
"""Largest absolute value of an input's integers."""


class Int8Linear(nn.Module):
    """A linear layer with packed 8-bit weights and float32 input and output.

    Args:
        weight: `(out, in)`, float32; not kept.
        bias: `(out,)`, float32, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.detach().clone()
        scales = weight.detach().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        integers = (weight.detach() / scales[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int32)
        self._largest = LARGEST_WITH_VNNI if torch.cpu._is_vnni_supported() else LARGEST_WITHOUT_VNNI

    def forward(self, hidden: Tensor) -> Tensor:
        """The layer's output for inputs `(..., in)`."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        return joint_product([self], flat).view(*hidden.shape[:-1], -1)

    def product_of_bytes(self, rows: Tensor) -> Tensor:
        """`rows @ weight.T` in float32 for rows `(rows, in)` of bytes; see `to_bytes`."""
        multiply = torch.ops.onednn.qlinear_pointwise
        return multiply(  # type: ignore[no-any-return]
            rows, 1 / self._largest, ZERO, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip

    def to_bytes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The bytes of rows `(rows, in)`, and the largest absolute value of each row, `(rows, 1)`."""
        scale = rows.abs().amax(1, keepdim=True).clamp_min_(1e-30)
        return (rows * (self._largest / scale)).round_().add_(ZERO).to(torch.uint8), scale


@torch.no_grad()
def joint_product(layers: Sequence[Int8Linear], rows: Tensor) -> Tensor:
    """Outputs of layers that read the same rows `(rows, in)`, side by side: `(rows, sum of out)`."""
    row_bytes, scale = layers[0].to_bytes(rows)
    outputs = []
    for layer in layers:
        out = layer.product_of_bytes(row_bytes).mul_(scale)
        outputs.append(out if layer.bias is None else out.add_(layer.bias))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def install(module: nn.Module, prefixes: tuple[str, ...]) -> int:
    """Put 8-bit layers in the place of frozen float32 linear layers, for good.

    Args:
        module: The model, on the CPU.
        prefixes: Beginnings of the names of the layers. The output head should not be among them, since its weights
            are often the embeddings too.
    Returns:
        Number of layers.
    """
    found = [
        (parent, name, child)
        for parent_name, parent in module.named_modules()
        for name, child in parent.named_children()
        if f"{parent_name}.{name}.".startswith(prefixes) and isinstance(child, nn.Linear) and is_suitable(child)
    ]
    for parent, name, layer in found:
        setattr(parent, name, Int8Linear(layer.weight, layer.bias))
    return len(found)
