"""Products with weights in 8-bit integers, for answering on a CPU: a quarter of float32's bytes, and fewer to read.

A weight has one scale for each output, and a row of the input one scale of its own, found when it comes (dynamic
quantization with symmetric ranges): `x @ W.T` becomes an integer product, multiplied by both scales in float32. The
product is oneDNN's, packed once; processors with VNNI add four products of bytes at a time. Without VNNI its 16-bit
sums could overflow, so inputs take 7 bits there. (fbgemm's product was a third faster for one row, but needs torch's
quantized tensors, which are deprecated.)

`models.precision.packed_linear` puts such products in the place of linear layers.
"""

import torch
from torch import Tensor

ZERO = 128
"""The byte of an input that is 0: oneDNN's products are fastest for unsigned inputs."""
LARGEST_WITH_VNNI, LARGEST_WITHOUT_VNNI = 127, 63
"""Largest absolute value of an input's integers."""

ROWS_AT_ONCE = 4096
"""Outputs whose weights are rounded at the same time."""


class Int8Weight:
    """A packed 8-bit weight; a `packed_linear.Product`.

    Args:
        weight: `(out, in)`, float32; not kept.
        bias: `(out,)`, float32, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = None if bias is None else bias.detach().clone()
        self._scales = torch.empty(len(weight))
        integers = torch.empty(weight.shape, dtype=torch.int8)
        for start in range(0, len(weight), ROWS_AT_ONCE):  # another float32 copy of a head would be its largest moment
            rows = slice(start, start + ROWS_AT_ONCE)
            part = weight.detach()[rows]
            self._scales[rows] = part.abs().amax(1).clamp_min_(torch.finfo(torch.float32).tiny) / 127
            integers[rows] = (part / self._scales[rows, None]).round_()
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.largest = LARGEST_WITH_VNNI if torch.cpu._is_vnni_supported() else LARGEST_WITHOUT_VNNI
        """Largest absolute value of an input's integers."""

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """`rows @ weight.T + bias` in float32 for rows `(rows, in)`."""
        row_bytes, scale = to_bytes(rows, self.largest)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            row_bytes, 1 / self.largest, ZERO, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        out.mul_(scale)
        return out if self._bias is None else out.add_(self._bias)


def to_bytes(rows: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """The bytes of rows `(rows, in)`, and the largest absolute value of each row, `(rows, 1)`; few operations, since a
    pass of one token has 120 of these."""
    scale = rows.abs().amax(1, keepdim=True).clamp_min_(1e-30)
    # Conversion to bytes cuts the fraction off, so that the added half rounds to the nearest.
    return (rows * (largest / scale)).add_(ZERO + 0.5).to(torch.uint8), scale
