"""Products with frozen float32 weights, computed in bfloat16 on the CPU; everything around them stays float32.

Processors with bfloat16 units (AMX, AVX512-BF16) multiply bfloat16 matrices two to six times faster than float32 ones,
others slower; `models.precision.compute` measures which is the case. A product here rounds its input and its result to
bfloat16 and adds up in float32. Norms, softmax, residual stream, LoRA, connector, losses, and the float32 weights
themselves are not touched, so that training, saving and merging are as without it.

`install` replaces the `forward` of frozen linear layers, with gradients for their inputs; the products of LoRA layers
are found through `weight_of` (`models.parts.lora_product`), and decoding uses `multiplication` (`models.cpu_decode`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


class Bfloat16Weight:
    """A frozen weight in bfloat16, in the layout that oneDNN wants; one copy serves any number of rows.

    Where oneDNN has no bfloat16 kernels for the processor, torch's ordinary product gives the same roundings, slowly.

    Args:
        weight: `(out, in)`, float32.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach()
        self._forward = multiplication(self._weight.bfloat16())
        self._backward: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def product(self, rows: Tensor) -> Tensor:
        """`rows @ weight.T` in float32, for rows `(rows, in)` in float32 or already rounded to bfloat16."""
        return self._forward(rows.bfloat16()).float()

    @torch.no_grad()
    def input_gradient(self, grad: Tensor) -> Tensor:
        """`grad @ weight` in float32, for the gradient `(rows, out)` of a product, in float32 or already rounded to
        bfloat16; packs the transposed weight once."""
        if self._backward is None:
            self._backward = multiplication(self._weight.T.bfloat16().contiguous())
        return self._backward(grad.bfloat16()).float()


def multiplication(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that multiplies bfloat16 rows `(rows, in)` with a bfloat16 weight `(out, in)` that it keeps packed."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return lambda rows: functional.linear(rows, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 64)  # the layout is the same for all numbers of rows
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda rows: multiply(rows, packed, None, "none", [], "")  # type: ignore[no-any-return]


class _FrozenProduct(torch.autograd.Function):
    """`Bfloat16Weight.product` with a gradient for the rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, weight: Bfloat16Weight) -> Tensor:
        """Compute the product for rows `(rows, in)`."""
        ctx.weight = weight  # type: ignore[attr-defined]
        return weight.product(rows)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the rows."""
        return ctx.weight.input_gradient(grad), None


class _Bfloat16Forward:
    """Replacement `forward` of a frozen linear layer. A layer whose weight has changed since is packed again.

    Args:
        layer: The layer; its bias is added in float32.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self._version: tuple[int, int] | None = None
        self._weight: Bfloat16Weight

    def weight(self) -> Bfloat16Weight:
        """The bfloat16 weight of the layer as it is now; packed when it is first used."""
        if (version := _version(self._layer.weight)) != self._version:
            self._version, self._weight = version, Bfloat16Weight(self._layer.weight)
        return self._weight

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.dtype != torch.float32 or self._layer.weight.requires_grad:
            return functional.linear(hidden, self._layer.weight, self._layer.bias)
        flat = hidden.reshape(-1, hidden.shape[-1])
        out: Tensor = _FrozenProduct.apply(flat, self.weight())  # type: ignore[no-untyped-call]
        if self._layer.bias is not None:
            out = out + self._layer.bias
        return out.view(*hidden.shape[:-1], -1)


def install(module: nn.Module, prefixes: tuple[str, ...]) -> int:
    """Compute the products of frozen float32 linear layers in bfloat16, in place.

    Args:
        module: The model, on the CPU.
        prefixes: Beginnings of the names of the layers, for example `("encoder.",)`. The output head should not be
            among them: logits rounded to bfloat16 are off by up to 0.06.
    Returns:
        Number of layers.
    """
    count = 0
    for name, layer in module.named_modules():
        if f"{name}.".startswith(prefixes) and is_suitable(layer):
            layer.forward = _Bfloat16Forward(layer)
            count += 1
    return count


def uninstall(module: nn.Module) -> None:
    """Give all layers of a module their own `forward` back."""
    for layer in module.modules():
        if isinstance(vars(layer).get("forward"), _Bfloat16Forward):
            del layer.forward


def weight_of(layer: nn.Module) -> Bfloat16Weight | None:
    """The bfloat16 weight of a layer that `install` has changed; None for any other layer, or if it is trained."""
    forward = vars(layer).get("forward")
    if not isinstance(forward, _Bfloat16Forward) or any(value.requires_grad for value in layer.parameters()):
        return None
    return forward.weight()


def is_suitable(layer: nn.Module) -> bool:
    """True for an ordinary, frozen linear layer in float32 on the CPU."""
    return (
        type(layer) is nn.Linear
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
        and not layer.weight.requires_grad
    )


def round_stochastically(weight: Tensor, seed: int) -> Tensor:
    """Round float32 values to bfloat16 up or down at random, so that the expected value is the value itself.

    A LoRA update is often smaller than half of the spacing of bfloat16 numbers. Rounding the sum of such an update and
    a weight that is a bfloat16 number to the nearest gives the weight back, and the update is lost; rounded this way it
    arrives on average.

    Args:
        weight: Finite float32 values.
        seed: Seed of the draws.
    Returns:
        bfloat16 values of the same shape.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 1 << 16, weight.shape, dtype=torch.int32, generator=generator)
    # A bfloat16 number is the upper half of a float32 number; adding noise to the lower half carries at the right rate.
    bits = weight.contiguous().view(torch.int32) + noise
    return (bits & -65536).view(torch.float32).bfloat16()


def _version(weight: Tensor) -> tuple[int, int]:
    """Numbers that change when a weight is moved or written to."""
    return weight.data_ptr(), weight._version
