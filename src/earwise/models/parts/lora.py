"""LoRA matrices as plain tensors: collect them from a model that peft trains, stack them, merge them. Training itself
is peft's.

Names are the weight's own with `.lora_A` or `.lora_B` behind it; `lora_scale` (alpha / r) is multiplied into B, so that
a file needs no config.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_plain_lora(layer: Any) -> bool:
    """A peft layer with one adapter of the plain kind upon a plain linear layer."""
    return type(layer.base_layer) is nn.Linear and list(layer.lora_A) == ["default"] and not layer.use_dora["default"]


def collect(module: nn.Module) -> dict[str, Tensor]:
    """LoRA matrices of all peft layers inside `module`, empty if there are none."""
    state = {}
    for name, layer in module.named_modules():
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        state[f"{name}.lora_A"] = layer.lora_A["default"].weight.detach().clone()
        state[f"{name}.lora_B"] = (layer.lora_B["default"].weight * layer.scaling["default"]).detach().clone()
    return state


def concatenate_ranks(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One LoRA that acts as the sum of two: ranks add up."""
    out = dict(first)
    for name, value in second.items():
        out[name] = (
            torch.cat([out[name].to(value), value], 0 if name.endswith("lora_A") else 1) if name in out else value
        )
    return {name: value.contiguous() for name, value in out.items()}


def first_ranks(state: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The first of two LoRAs that were `concatenate_ranks`."""
    return {name: value[:rank] if name.endswith("lora_A") else value[:, :rank] for name, value in state.items()}


@torch.no_grad()
def merge(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Add `B @ A` in place to the weights they belong to.

    Raises:
        KeyError: if there is no such weight, or a matrix stands alone.
    """
    for name, up in state.items():
        if name.endswith(".lora_B"):
            stem = name.removesuffix(".lora_B")
            weights[f"{stem}.weight"].addmm_(
                up.to(weights[f"{stem}.weight"]), state[f"{stem}.lora_A"].to(weights[f"{stem}.weight"])
            )
