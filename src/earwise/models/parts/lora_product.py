"""A linear layer with LoRA as one autograd operation, for training: fewer passes over large tensors than in PEFT.

PEFT computes `x W' + s (x A') B'` as separate operations, each with its own result and its own backward step. Here the
second product is accumulated into the first in place, forward and backward, and the scale is applied within it: two
products with few columns and no sum over `(rows, out)`. Results differ from PEFT's by rounding. It is used for float32
(the dtype that LoRA is trained in), ordinary linear layers and a single LoRA; everything else stays with PEFT.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from earwise.models.parts import lora
from earwise.models.precision import bfloat16_products
from earwise.models.precision.bfloat16_products import Bfloat16Weight


def fuse_lora_layers(module: nn.Module) -> int:
    """Replace the forward of every suitable PEFT layer inside a module, in place; names and parameters stay.

    Returns:
        Number of layers.
    """
    count = 0
    for layer in module.modules():
        if hasattr(layer, "lora_A") and _is_suitable(layer):
            layer.forward = FusedLoraForward(layer)  # type: ignore[method-assign]
            count += 1
    return count


def _is_suitable(layer: Any) -> bool:
    """True for a plain LoRA layer without dropout and without a bias in B."""
    return (
        lora.is_plain_lora(layer)
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and layer.lora_B["default"].bias is None
    )


class FusedLoraForward:
    """Replacement `forward` of one PEFT layer.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._original: Callable[..., Tensor] = type(layer).forward

    def __call__(self, rows: Tensor, *other_arguments: Any, **named_arguments: Any) -> Tensor:
        """The output of the layer. Merged or disabled LoRA and other dtypes than float32 are left to PEFT."""
        layer = self._layer
        if layer.disable_adapters and not layer.merged:
            out: Tensor = layer.base_layer(rows)
            return out
        base = layer.base_layer
        lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if layer.merged or not rows.dtype == base.weight.dtype == lora_a.dtype == torch.float32:
            return self._original(layer, rows, *other_arguments, **named_arguments)
        flat, scale = rows.reshape(-1, rows.shape[-1]), layer.scaling["default"]
        product: Tensor
        if (rounded := bfloat16_products.weight_of(base)) is None:
            product = LoraProduct.apply(  # type: ignore[no-untyped-call]
                flat, base.weight, base.bias, lora_a, lora_b, scale
            )
        else:
            product = Bfloat16LoraProduct.apply(  # type: ignore[no-untyped-call]
                flat, rounded, base.bias, lora_a, lora_b, scale
            )
        return product.view(*rows.shape[:-1], -1)


class LoraProduct(torch.autograd.Function):
    """`x W' + b + scale (x A') B'`, with gradients for x, A and B, and for W and b if they are trained too."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor,
        scale: float,
    ) -> Tensor:  # fmt: skip
        """Compute the product for rows `(rows, in)`."""
        low_rank = rows @ lora_a.T
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        ctx.save_for_backward(rows, weight, lora_a, lora_b, low_rank)
        ctx.scale = scale  # type: ignore[attr-defined]
        return out.addmm_(low_rank, lora_b.T, alpha=scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`; None where autograd needs none."""
        rows, weight, lora_a, lora_b, low_rank = ctx.saved_tensors
        needs_grad = ctx.needs_input_grad
        grad_low_rank = (grad @ lora_b).mul_(ctx.scale)
        grad_rows = None
        if needs_grad[0]:
            grad_rows = (grad @ weight).addmm_(grad_low_rank, lora_a)
        grad_weight = grad.T @ rows if needs_grad[1] else None
        grad_bias = grad.sum(0) if needs_grad[2] else None
        grad_lora_a = grad_low_rank.T @ rows if needs_grad[3] else None
        grad_lora_b = (grad.T @ low_rank).mul_(ctx.scale) if needs_grad[4] else None
        return grad_rows, grad_weight, grad_bias, grad_lora_a, grad_lora_b, None


class Bfloat16LoraProduct(torch.autograd.Function):
    """`LoraProduct` with a frozen weight whose product is computed in bfloat16 (`precision.bfloat16_products`).

    Products with many columns on one side and LoRA's rank on the other take bfloat16 inputs too: with rank 48 they were
    a third of a training step. What LoRA adds to an output is added in float32, since bfloat16 would round an update
    that is smaller than half of the spacing of the output's numbers away.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, weight: Bfloat16Weight, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor,
        scale: float,
    ) -> Tensor:  # fmt: skip
        """Compute the product for rows `(rows, in)`; the bias is frozen."""
        rounded_rows = rows.bfloat16()
        low_rank = rounded_rows @ lora_a.bfloat16().T
        out = weight.product(rounded_rows)
        if bias is not None:
            out.add_(bias)
        ctx.save_for_backward(rounded_rows, lora_a, lora_b, low_rank)
        ctx.scale, ctx.weight = scale, weight  # type: ignore[attr-defined]
        return out.addmm_(low_rank.float(), lora_b.T, alpha=scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`; None where autograd needs none."""
        rounded_rows, lora_a, lora_b, low_rank = ctx.saved_tensors
        needs_grad = ctx.needs_input_grad
        rounded_grad = grad.bfloat16()
        grad_low_rank = (rounded_grad @ lora_b.bfloat16()).mul_(ctx.scale)
        grad_rows = None
        if needs_grad[0]:
            grad_rows = ctx.weight.input_gradient(rounded_grad).addmm_(grad_low_rank.float(), lora_a)
        grad_lora_a = (grad_low_rank.T @ rounded_rows).float() if needs_grad[3] else None
        grad_lora_b = (rounded_grad.T @ low_rank).float().mul_(ctx.scale) if needs_grad[4] else None
        return grad_rows, None, None, grad_lora_a, grad_lora_b, None
