"""LoRA matrices as plain tensors: collect them from a PEFT model, concatenate them, and merge them into weights.

A pair of matrices is named after the weight that it changes, with `.lora_A` and `.lora_B` in place of `.weight`. The
scale (alpha / r) is multiplied into B, so that a file of them needs no config. Training LoRA is left to PEFT.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_plain_lora(layer: Any) -> bool:
    """True for a PEFT layer with a single LoRA (not DoRA) on an ordinary linear layer."""
    return type(layer.base_layer) is nn.Linear and list(layer.lora_A) == ["default"] and not layer.use_dora["default"]


def collect(module: nn.Module) -> dict[str, Tensor]:
    """The LoRA matrices of a module, copied: those of PEFT's layers, after those that are computed beside a layer
    (`precision/lora_beside.py`); empty if there are none."""
    from earwise.models.precision import lora_beside

    matrices: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        matrices[f"{name}.lora_A"] = layer.lora_A["default"].weight.detach().clone()
        matrices[f"{name}.lora_B"] = (layer.lora_B["default"].weight * layer.scaling["default"]).detach().clone()
    return concatenate_ranks({name: value.clone() for name, value in lora_beside.attached(module).items()}, matrices)


def concatenate_ranks(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA that acts as the sum of two: their ranks are concatenated where both change a weight."""
    out = dict(first)
    for name, value in second.items():
        out[name] = (
            torch.cat([out[name].to(value), value], 0 if name.endswith("lora_A") else 1) if name in out else value
        )
    return {name: value.contiguous() for name, value in out.items()}


def first_ranks(matrices: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The first `rank` ranks: undoes `concatenate_ranks` if `rank` is that of its first LoRA."""
    return {name: value[:rank] if name.endswith("lora_A") else value[:, :rank] for name, value in matrices.items()}


def ranks_after(matrices: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """All ranks but the first `rank`."""
    return {name: value[rank:] if name.endswith("lora_A") else value[:, rank:] for name, value in matrices.items()}


def reduce_ranks(matrices: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The LoRA of at most `rank` ranks whose products `B @ A` are nearest to those of a LoRA with more.

    Nearest in the Frobenius norm, by a singular value decomposition of each product (Eckart and Young, 1936).

    Args:
        matrices: Matrices by the name of the weight and `.lora_A`, `(ranks, in)`, or `.lora_B`, `(out, ranks)`.
        rank: Largest number of ranks.
    """
    reduced = {}
    for name, lora_b in matrices.items():
        if not name.endswith(".lora_B"):
            continue
        stem = name.removesuffix(".lora_B")
        basis_out, inner_out = torch.linalg.qr(lora_b.float())
        basis_in, inner_in = torch.linalg.qr(matrices[f"{stem}.lora_A"].float().T)
        left, values, right = torch.linalg.svd(inner_out @ inner_in.T)
        roots = values[:rank].sqrt()
        reduced[f"{stem}.lora_A"] = (roots[:, None] * (right[:rank] @ basis_in.T)).contiguous()
        reduced[f"{stem}.lora_B"] = (basis_out @ left[:, :rank] * roots).contiguous()
    return reduced


def products(matrices: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name of each weight and the change `B @ A` of it, float32, one at a time since each is as large as the weight."""
    for name, lora_b in matrices.items():
        if name.endswith(".lora_B"):
            stem = name.removesuffix(".lora_B")
            yield f"{stem}.weight", lora_b.float() @ matrices[f"{stem}.lora_A"].float()


@torch.no_grad()
def merge(weights: Mapping[str, Tensor], matrices: Mapping[str, Tensor]) -> None:
    """Add `B @ A` to the weights that the matrices belong to, in place.

    Raises:
        KeyError: if a weight does not exist, or one matrix of a pair is missing.
    """
    for name, lora_b in matrices.items():
        if name.endswith(".lora_B"):
            stem = name.removesuffix(".lora_B")
            weight = weights[f"{stem}.weight"]
            weight.addmm_(lora_b.to(weight), matrices[f"{stem}.lora_A"].to(weight))
