"""LoRA computed beside linear layers whose weights have a lower precision than float32, instead of merged into them.

bfloat16 has eight significant bits, so most of a small update is lost when `W + B @ A` is rounded to it: of an update
with elements of B around 1e-4, a third remains. Here the weights stay as they are, and a forward hook adds the product
with A and B in float32, rounded with the output of the layer, exactly as PEFT computes a LoRA that is not merged.

A published checkpoint may contain a LoRA of its own (Granite Speech, Phi-4-multimodal). It belongs to the base, so it
is kept apart from what is trained (`own`): saving and merging add it to the weights, adapters never contain it.

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
OWN_A, OWN_B = "checkpoint_lora_a", "checkpoint_lora_b"
"""The same for the LoRA that the published checkpoint contains."""
_HOOK = "_beside_lora_hook"


def attach(module: nn.Module, matrices: Mapping[str, Tensor], *, own: bool = False) -> None:
    """Add a LoRA to linear layers, in place; where a layer has one already, the ranks are concatenated.

    Args:
        module: The model.
        matrices: LoRA by the names of the module's layers.
        own: True for the LoRA that the published checkpoint contains.
    Raises:
        AttributeError: if there is no such layer.
    """
    combined = lora.concatenate_ranks(attached(module, own=own), matrices)
    names = (OWN_A, OWN_B) if own else (A, B)
    for name, lora_b in matrices.items():
        if not name.endswith(".lora_B"):
            continue
        stem = name.removesuffix(".lora_B")
        layer: Any = module.get_submodule(stem)
        layer = getattr(layer, "base_layer", layer)
        device = lora_b.device if layer.weight.is_meta else layer.weight.device
        for buffer, half in zip(names, ("lora_A", "lora_B"), strict=True):
            layer.register_buffer(buffer, combined[f"{stem}.{half}"].to(device, torch.float32), persistent=False)
        if not hasattr(layer, _HOOK):
            setattr(layer, _HOOK, layer.register_forward_hook(_add_product))


def attached(module: nn.Module, *, own: bool = False) -> dict[str, Tensor]:
    """The matrices that `attach` has added to the layers of a module with the same `own`, float32."""
    name_a, name_b = (OWN_A, OWN_B) if own else (A, B)
    matrices = {}
    for name, layer in module.named_modules():
        buffers = dict(layer.named_buffers(recurse=False)) if hasattr(layer, _HOOK) else {}
        if name_b in buffers:
            stem = name.removesuffix(".base_layer")
            matrices[f"{stem}.lora_A"], matrices[f"{stem}.lora_B"] = buffers[name_a], buffers[name_b]
    return matrices


def detach(module: nn.Module, *, own: bool = False) -> None:
    """Remove what `attach` has added to the layers of a module (or to the module itself, if it is such a layer).

    Args:
        module: The model, or a layer of it.
        own: True removes the LoRA that the published checkpoint contains as well.
    """
    for layer in module.modules():
        if not hasattr(layer, _HOOK):
            continue
        buffers = dict(layer.named_buffers(recurse=False))
        removed = {A, B, OWN_A, OWN_B} if own else {A, B}
        for name in removed & set(buffers):
            delattr(layer, name)
        if own or OWN_B not in buffers:
            getattr(layer, _HOOK).remove()
            delattr(layer, _HOOK)


@torch.no_grad()
def merged_float32(layer: nn.Module) -> Tensor:
    """The weight of a layer with all that is attached to it added, in float32."""
    values: Any = layer
    merged: Tensor = values.weight.detach().float()
    for lora_a, lora_b in _pairs(layer):
        merged = merged.addmm(lora_b, lora_a)
    return merged


def _add_product(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook: the output of the layer plus the products with A and B."""
    rows: Tensor = arguments[0]
    sums = output.float()
    for lora_a, lora_b in _pairs(layer):
        sums = sums + rows.to(torch.float32) @ lora_a.T @ lora_b.T
    return sums.to(output.dtype)


def _pairs(layer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """A and B of each LoRA of a layer."""
    buffers = dict(layer.named_buffers(recurse=False))
    return [(buffers[name_a], buffers[name_b]) for name_a, name_b in ((OWN_A, OWN_B), (A, B)) if name_b in buffers]
