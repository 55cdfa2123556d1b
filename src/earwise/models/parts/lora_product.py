"""A linear layer with LoRA as one operation, for training: fewer passes over the rows than peft's own sum of parts.

peft computes `x W' + s (x A') B'` as separate operations, each with its own result and its own step backwards. Here the
second product is added into the first where it lies, forward and backward, and the scale rides on it: two thin passes
and no sum over `(rows, out)`. Numbers differ by rounding. Used for float32 (what LoRA is trained in), plain linear
layers and one adapter; everything else stays peft's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from earwise.models.parts import lora


def fuse_lora_layers(module: nn.Module) -> int:
    """Let every fitting peft layer inside `module` compute as one operation, in place; names and parameters stay.

    Returns:
        Number of layers.
    """
    found = 0
    for layer in module.modules():
        if hasattr(layer, "lora_A") and _fits(layer):
            layer.forward = Fused(layer)  # type: ignore[method-assign]
            found += 1
    return found


def _fits(layer: Any) -> bool:
    return (
        lora.is_plain_lora(layer)
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and layer.lora_B["default"].bias is None
    )


class Fused:
    """Stands for the `forward` of one peft layer."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._plain: Callable[..., Tensor] = type(layer).forward

    def __call__(self, rows: Tensor, *others: Any, **named: Any) -> Tensor:
        layer = self._layer
        if layer.disable_adapters and not layer.merged:
            out: Tensor = layer.base_layer(rows)
            return out
        base = layer.base_layer
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if layer.merged or not rows.dtype == base.weight.dtype == down.dtype == torch.float32:
            return self._plain(layer, rows, *others, **named)
        flat = rows.reshape(-1, rows.shape[-1])
        product = _Product.apply(flat, base.weight, base.bias, down, up, layer.scaling["default"])  # type: ignore[no-untyped-call]
        return product.view(*rows.shape[:-1], -1)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """`x W' + b + scale (x A') B'`; gradients for x, A and B, and for W and b where they are trained too."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        thin = rows @ down.T
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        ctx.save_for_backward(rows, weight, down, up, thin)
        ctx.scale = scale  # type: ignore[attr-defined]
        return out.addmm_(thin, up.T, alpha=scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, thin = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        inner = (grad @ up).mul_(ctx.scale)
        grad_rows = (grad @ weight).addmm_(inner, down) if wanted[0] else None
        grad_weight = grad.T @ rows if wanted[1] else None
        grad_bias = grad.sum(0) if wanted[2] else None
        grad_down = inner.T @ rows if wanted[3] else None
        grad_up = (grad.T @ thin).mul_(ctx.scale) if wanted[4] else None
        return grad_rows, grad_weight, grad_bias, grad_down, grad_up, None
