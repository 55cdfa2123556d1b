"""LoRA computed beside linear layers whose weights have a lower precision than float32, instead of merged into them.

bfloat16 has eight significant bits, so most of a small update is lost when `W + B @ A` is rounded to it: of an update
with elements of B around 1e-4, a third remains. Here the weights stay as they are, and a forward hook adds the product
with A and B in float32, rounded with the output of the layer, exactly as PEFT computes a LoRA that is not merged.

Used by `models/lora_checkpoint.py` when an adapter is loaded, and by whatever needs the LoRA back: saving, merging in
float32, training in full (`training/trainable.py`). The matrices are named as in `parts/lora.py`, with the scale inside
B, and are buffers of the layer that no state dict contains.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from earwise.models.parts import lora

LOW_PRECISION = (torch.bfloat16, torch.float16)
"""Dtypes in which weights are computed with but not trained."""
A, B = "beside_lora_a", "beside_lora_b"
"""Names of the buffers of a linear layer."""
_HOOK = "_beside_lora_hook"


def attach(module: nn.Module, matrices: Mapping[str, Tensor]) -> None:
    """Add a LoRA to linear layers, in place; where a layer has one already, the ranks are concatenated.

    Args:
        module: The model.
        matrices: LoRA by the names of the module's layers.
    Raises:
        AttributeError: if there is no such layer.
    """
    combined = lora.concatenate_ranks(attached(module), matrices)
    for name, lora_b in matrices.items():
        if not name.endswith(".lora_B"):
            continue
        stem = name.removesuffix(".lora_B")
        layer: Any = module.get_submodule(stem)
        layer = getattr(layer, "base_layer", layer)
        device = lora_b.device if layer.weight.is_meta else layer.weight.device
        for buffer, half in ((A, "lora_A"), (B, "lora_B")):
            layer.register_buffer(buffer, combined[f"{stem}.{half}"].to(device, torch.float32), persistent=False)
        if not hasattr(layer, _HOOK):
            setattr(layer, _HOOK, layer.register_forward_hook(_add_product))


def attached(module: nn.Module) -> dict[str, Tensor]:
    """The matrices that `attach` has added to the layers of a module, float32."""
    matrices = {}
    for name, layer in module.named_modules():
        if hasattr(layer, _HOOK):
            stem = name.removesuffix(".base_layer")
            matrices[f"{stem}.lora_A"], matrices[f"{stem}.lora_B"] = getattr(layer, A), getattr(layer, B)
    return matrices


def detach(module: nn.Module) -> None:
    """Remove what `attach` has added to the layers of a module (or to the module itself, if it is such a layer)."""
    for layer in module.modules():
        if hasattr(layer, _HOOK):
            getattr(layer, _HOOK).remove()
            for name in (_HOOK, A, B):
                delattr(layer, name)


@torch.no_grad()
def merged_float32(layer: nn.Module) -> Tensor:
    """The weight of a layer with its attached LoRA added, in float32."""
    values: Any = layer
    merged: Tensor = values.weight.detach().float().addmm(getattr(layer, B), getattr(layer, A))
    return merged


def _add_product(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook: the output of the layer plus the product with A and B."""
    rows: Tensor = arguments[0]
    product = rows.to(torch.float32) @ getattr(layer, A).T @ getattr(layer, B).T
    return (output + product).to(output.dtype)
