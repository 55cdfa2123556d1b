"""LoRA in PEFT's own folder format: written beside what a run trained, exported for others, read from others.

The format is `adapter_config.json` and `adapter_model.safetensors`, as PEFT, vLLM and transformers read them. Parameter
names differ between transformers 4 (published checkpoints, vLLM) and transformers 5 (the classes here): a family's
`parameter_names` in `models/registry.py` says how. Adapters are read under either names and written under those that
the caller chooses. The scale (alpha / r) is multiplied into B, so a written config says alpha = r. Called by
`training/run.py` (write beside the weights), `models/export.py` and `models/base.py` (read and merge).

Source: PEFT 0.21, format of `save_pretrained`.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from earwise.errors import ModelError
from earwise.models import checkpoint, hub
from earwise.models.checkpoint import PEFT_WEIGHTS
from earwise.models.detect import PEFT_CONFIG, adapter_base
from earwise.models.family import NamePairs
from earwise.models.parts import lora
from earwise.models.precision import lora_beside

SUBFOLDER = "adapter"
"""Folder inside a checkpoint that contains the LoRA of its training."""
PEFT_PREFIX = "base_model.model."
"""Beginning of all parameter names in PEFT's files."""
_APPLIED = "_applied_adapters"
"""Attribute of a module with the `_Applied` of it."""


@dataclass(frozen=True, slots=True)
class _Applied:
    """What `apply` has changed in a module beside the LoRA that is computed beside its layers.

    Attributes:
        merged: LoRA that was merged into float32 weights.
        full_names: Names of the parameters that were replaced.
    """

    merged: Mapping[str, Tensor] = field(default_factory=dict)
    full_names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """What training added to a base model.

    Attributes:
        matrices: LoRA as `parts/lora.py` names it, `STEM.lora_A` and `STEM.lora_B`, with the scale inside B.
        full_parameters: Parameters that were trained in full beside it (a connector), by name.
        base: Checkpoint that they are added to: a folder, or a name on a model hub (`ORGANISATION/MODEL@REVISION`).
    """

    matrices: Mapping[str, Tensor]
    full_parameters: Mapping[str, Tensor]
    base: str


def from_module(
    module: nn.Module, base: str, exact: Mapping[str, Tensor] | None = None, *, include_applied: bool = True
) -> PeftAdapter:
    """What a module that was prepared for training has beyond its base: LoRA and fully trained parameters.

    Args:
        module: The module.
        base: Checkpoint or model name that it is added to.
        exact: Float32 values of parameters of which the module has the roundings.
        include_applied: Whether adapters that were applied to the module (`apply`) belong to the result; False if
            `base` contains them.
    """
    applied: _Applied = getattr(module, _APPLIED, _Applied()) if include_applied else _Applied()
    exact = exact or {}
    full_parameters = {}
    for name, parameter in module.named_parameters():
        own_name = name.replace(".base_layer.", ".")
        if ".lora_" not in name and (parameter.requires_grad or own_name in applied.full_names):
            full_parameters[own_name] = exact.get(name, parameter).detach().clone()
    matrices = {
        name: value
        for name, value in lora.concatenate_ranks(applied.merged, lora.collect(module)).items()
        if f"{name.rpartition('.lora_')[0]}.weight" not in full_parameters
    }
    return PeftAdapter(matrices, full_parameters, base)


def can_be_merged(module: nn.Module, adapter: PeftAdapter) -> bool:
    """Whether all weights that an adapter (of this module) changes are float32, so that merging it loses nothing."""
    dtypes = {name.replace(".base_layer.", "."): value.dtype for name, value in module.named_parameters()}
    stems = {name.rpartition(".lora_")[0] for name in adapter.matrices}
    return all(dtypes[f"{stem}.weight"] == torch.float32 for stem in stems)


def write_beside(checkpoint_folder: Path, adapter: PeftAdapter) -> None:
    """Write an adapter into a subfolder of the checkpoint with its merged weights, under the names of this package.
    Nothing is written if there is no LoRA in it."""
    if adapter.matrices:
        write(checkpoint_folder / SUBFOLDER, adapter)


def read_beside(checkpoint_folder: Path) -> PeftAdapter:
    """The adapter of a checkpoint: the folder itself, if a run wrote nothing else, or what `write_beside` wrote.

    Raises:
        ModelError: if there is none: the model was not trained with LoRA, or by another program.
    """
    if (checkpoint_folder / PEFT_CONFIG).is_file():
        return read(checkpoint_folder)
    if not (checkpoint_folder / SUBFOLDER / PEFT_CONFIG).is_file():
        raise ModelError(
            f"{checkpoint_folder}: no adapter was kept here (trained in full, or not by this package); "
            "export it with --format merged"
        )
    return read(checkpoint_folder / SUBFOLDER)


def rename_parameters(adapter: PeftAdapter, names: NamePairs, *, drop_others: bool = False) -> PeftAdapter:
    """The same adapter with the beginnings of its parameter names replaced.

    Args:
        adapter: The adapter.
        names: Pairs of old and new beginning; the first that fits is used.
        drop_others: Leave out parameters that no pair fits; else they keep their names.
    """

    def new_name(name: str) -> str | None:
        for old, new in names:
            if name.startswith(old):
                return new + name[len(old) :]
        return None if drop_others else name

    matrices, full_parameters = (
        {renamed: value for name, value in part.items() if (renamed := new_name(name)) is not None}
        for part in (adapter.matrices, adapter.full_parameters)
    )
    return PeftAdapter(matrices, full_parameters, adapter.base)


def write(folder: Path, adapter: PeftAdapter) -> None:
    """Write an adapter as PEFT does; parameters trained in full become its `modules_to_save`.

    Raises:
        ModelError: if there is no LoRA in it.
    """
    ranks = {
        name.removesuffix(".lora_A"): len(value) for name, value in adapter.matrices.items() if name.endswith("lora_A")
    }
    if not ranks:
        raise ModelError(f"{folder}: no LoRA to write: the model was trained in full; export it with --format merged")
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    other_ranks = {stem: value for stem, value in ranks.items() if value != rank}
    base, revision = hub.split_name(adapter.base) if hub.has_form(adapter.base) else (adapter.base, None)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other_ranks,
        "alpha_pattern": other_ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.full_parameters}) or None,
        "inference_mode": True,
    }
    tensors = {f"{PEFT_PREFIX}{name}.weight": value for name, value in adapter.matrices.items()}
    tensors |= {f"{PEFT_PREFIX}{name}": value for name, value in adapter.full_parameters.items()}
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    save_file(contiguous, folder / PEFT_WEIGHTS, {"format": "pt"})
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> PeftAdapter:
    """Read an adapter as PEFT wrote it, under the names of its file without `base_model.model.`.

    Raises:
        ModelError: if it is pickled, not LoRA, of a kind that is more than B @ A (DoRA, biases), or its files are
            broken.
    """
    path = folder / PEFT_WEIGHTS
    if not path.exists():
        pickled = folder / "adapter_model.bin"
        if pickled.exists():
            raise ModelError(f"{pickled}: pickled weights can run code and are not read; save it as safetensors")
        raise ModelError(f"{path}: not here; copy the adapter whole")
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own, undeclared class
        raise ModelError(f"{folder}: not an adapter that can be read ({error}); copy it again") from error
    unsupported = [
        f"{key} {value!r}"
        for key, value in (
            ("peft_type", config.get("peft_type") != "LORA" and config.get("peft_type")),
            ("use_dora", config.get("use_dora")),
            ("bias", config.get("bias", "none") != "none" and config.get("bias")),
        )
        if value
    ]
    if unsupported:
        raise ModelError(
            f"{folder / PEFT_CONFIG}: {', '.join(unsupported)} is not plain LoRA; merge it with PEFT first"
        )
    matrices: dict[str, Tensor] = {}
    full_parameters: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(PEFT_PREFIX)
        stem, infix, _ = name.partition(".lora_")
        if not infix:
            full_parameters[name] = value
        elif name.endswith("lora_A.weight"):
            matrices[f"{stem}.lora_A"] = value
        elif name.endswith("lora_B.weight"):
            matrices[f"{stem}.lora_B"] = value.float() * _scale(config, stem, value.shape[1])
        else:
            raise ModelError(f"{path}: {key} is not LoRA of a linear layer; merge it with PEFT first")
    base = hub.with_revision(str(config.get("base_model_name_or_path") or ""), config.get("revision"))
    return PeftAdapter(matrices, full_parameters, base)


@torch.no_grad()
def add_own(module: nn.Module, adapter: PeftAdapter, names: NamePairs, source: Path) -> None:
    """Add the adapter that a published checkpoint itself contains to its weights, in place.

    It is merged into float32 weights, and computed beside weights of a lower precision, which merging would round. It
    stays part of the base: no adapter that is trained later contains it.

    Args:
        module: The base model.
        adapter: The adapter, under the module's parameter names or under the published ones.
        names: The family's `parameter_names`.
        source: The adapter's folder, for error messages.
    Raises:
        ModelError: if it contains parameters that the module has not, or of another shape; nothing is changed then.
    """
    fitted = _fit(module, adapter, names, source)
    weights = dict(module.named_parameters())
    into, beside = _by_precision(weights, fitted.matrices)
    for name, change in lora.products(into):
        weights[name].add_(change.to(weights[name]))
    lora_beside.attach(module, beside, own=True)
    for name, value in fitted.full_parameters.items():
        weights[name].copy_(value.to(weights[name]))


def _by_precision(
    weights: Mapping[str, Tensor], matrices: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA, separated into that of float32 weights and that of weights of a lower precision."""
    beside = {
        name: value
        for name, value in matrices.items()
        if weights[f"{name.rpartition('.lora_')[0]}.weight"].dtype in lora_beside.LOW_PRECISION
    }
    return {name: value for name, value in matrices.items() if name not in beside}, beside


@torch.no_grad()
def apply(
    module: nn.Module, adapter: PeftAdapter, names: NamePairs, source: Path, *, float32_prefixes: tuple[str, ...] = ()
) -> None:
    """Make a base model compute what it computed when the adapter was trained, in place.

    LoRA is merged into float32 weights, and computed beside weights of a lower precision (`precision/lora_beside.py`).
    Fully trained parameters replace those of the base, in its dtype, which they were computed in.

    Args:
        module: The base model.
        adapter: The adapter, under the module's parameter names or under the published ones.
        names: The family's `parameter_names`.
        source: The adapter's folder, for error messages.
        float32_prefixes: Beginnings of the names of parameters that keep float32 (a connector, which is trained and
            computed in it).
    Raises:
        ModelError: if it contains parameters that the module has not, or of another shape; nothing is changed then.
    """
    fitted = _fit(module, adapter, names, source)
    weights = dict(module.named_parameters())
    into, beside = _by_precision(weights, fitted.matrices)
    for name, change in lora.products(into):
        weights[name].add_(change.to(weights[name]))
    lora_beside.attach(module, beside)
    for name, value in fitted.full_parameters.items():
        weight = weights[name]
        keeps_float32 = name.startswith(float32_prefixes)
        lora_beside.detach(module.get_submodule(name.rpartition(".")[0]), own=True)  # was merged when it was trained
        weight.data = value.to(weight.device, torch.float32 if keeps_float32 else weight.dtype, copy=True)
    earlier: _Applied = getattr(module, _APPLIED, _Applied())
    setattr(module, _APPLIED, _Applied(lora.concatenate_ranks(earlier.merged, into), earlier.full_names))
    remember_replaced(module, fitted.full_parameters)


def remember_replaced(module: nn.Module, names: Iterable[str]) -> None:
    """Have `from_module` return these parameters too: they differ from the base, whether or not they are trained."""
    earlier: _Applied = getattr(module, _APPLIED, _Applied())
    setattr(module, _APPLIED, _Applied(earlier.merged, earlier.full_names | set(names)))


def _fit(module: nn.Module, adapter: PeftAdapter, names: NamePairs, source: Path) -> PeftAdapter:
    """An adapter under the parameter names of a module, once it is certain that all of it fits; see `apply`."""
    label = "an adapter of this family, made for this model"
    weights = dict(module.named_parameters())
    stems = sorted({name.rpartition(".lora_")[0] for name in adapter.matrices})
    adapter_names = (*(f"{stem}.weight" for stem in stems), *adapter.full_parameters)
    module_names = {name: _module_name(name, names, weights) for name in adapter_names}
    unknown = {name for name, module_name in module_names.items() if module_name not in weights}
    incomplete = {stem for stem in stems for half in "AB" if f"{stem}.lora_{half}" not in adapter.matrices}
    if unknown or incomplete:
        checkpoint.check_tensors(source, incomplete, unknown, (), label)
    matrices: dict[str, Tensor] = {}
    shapes: dict[str, Tensor] = {}
    for stem in stems:
        name = module_names[f"{stem}.weight"]
        lora_a, lora_b = (adapter.matrices[f"{stem}.lora_{half}"].float() for half in "AB")
        matrices |= {f"{name.removesuffix('.weight')}.lora_A": lora_a, f"{name.removesuffix('.weight')}.lora_B": lora_b}
        shapes[name] = torch.empty(len(lora_b), lora_a.shape[1], device="meta")
    full_parameters = {module_names[name]: value for name, value in adapter.full_parameters.items()}
    checkpoint.check_tensors(source, (), (), checkpoint.shape_mismatches(shapes | full_parameters, weights), label)
    return PeftAdapter(matrices, full_parameters, adapter.base)


def merged_revision(base_revision: str, folder: Path) -> str:
    """Identifies the weights of a base model with the adapter of a folder merged in: twelve hexadecimal digits."""
    digest = checkpoint.weights_digest([folder / PEFT_WEIGHTS])
    return hashlib.sha256(f"{base_revision} {digest}".encode()).hexdigest()[:12]


def find_base(adapter: PeftAdapter, folder: Path, family: str) -> Path | None:
    """The folder of the checkpoint that an adapter is added to, downloaded from a model hub if it is not a folder here;
    None if it is the one that the family loads if no weights are given.

    Raises:
        ModelError: if the adapter names none or itself, or it is neither here nor on a hub.
    """
    if not adapter.base:
        raise ModelError(
            f"{folder / PEFT_CONFIG}: names no base_model_name_or_path; put the base checkpoint's folder there"
        )
    if (base_folder := adapter_base(folder, adapter.base)) is not None:
        return base_folder
    if adapter.base == family:
        return None
    if not hub.has_form(adapter.base):
        raise ModelError(
            f"{folder}: its base model {adapter.base} is no folder here; put the base checkpoint's folder into "
            f"{PEFT_CONFIG}"
        )
    try:
        return hub.fetch(adapter.base).folder
    except ModelError as error:
        raise ModelError(f"{folder}: its base model {error}") from error


def whole_base(start: str) -> str:
    """The model behind a model that may be an adapter (of an adapter, ...): the folder or name of a whole checkpoint.

    Args:
        start: Folder of a checkpoint or adapter, such a model of a hub, or any other name, which is returned as it is.
    """
    on_hub = not Path(start).is_dir() and hub.is_hub_name(start)
    folder = hub.fetch(start).folder if on_hub else Path(start)
    if not (folder / PEFT_CONFIG).is_file() or (folder / "config.json").is_file():
        return str(folder.resolve()) if folder.is_dir() and not on_hub else start
    adapter = read(folder)
    base = adapter_base(folder, adapter.base)
    return whole_base(adapter.base if base is None else str(base))


def _module_name(name: str, names: NamePairs, weights: Mapping[str, Tensor]) -> str:
    """The module's name of a parameter that may have its published name; unchanged if no pair fits."""
    for ours, published in names:
        if name.startswith(published) and ours + name[len(published) :] in weights:
            return ours + name[len(published) :]
    return name


def _scale(config: Mapping[str, Any], stem: str, rank: int) -> float:
    """alpha / r of one layer. As in PEFT, the patterns of `alpha_pattern` match the ends of module names."""
    alpha = config.get("lora_alpha") or rank
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", stem):
            alpha = value
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
