"""LoRA in PEFT's own folders: kept beside what a run trained, written for others, read from others.

`adapter_config.json` and `adapter_model.safetensors`, as PEFT, vLLM and transformers read them. Names of parameters
moved between transformers 4 (the released checkpoints, vLLM) and 5 (the classes here): `PUBLISHED` says how, adapters
are read under either names and written under those asked for. The scale (alpha / r) is multiplied into B, so a written
config says alpha = r. Called by `train.run` (keep), `commands.export` (write) and `models.base.load` (read, merge).

Source: PEFT 0.21, formats of `save_pretrained`; papers/qwen2-audio.md section 4.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from earwise.errors import ModelError
from earwise.models import checkpoint
from earwise.models.detect import ADAPTER as CONFIG
from earwise.models.parts import lora

KEPT = "adapter"  # folder inside a checkpoint
PREFIX = "base_model.model."
Names = tuple[tuple[str, str], ...]

_AUDIO_CHAT: Names = (
    ("model.language_model.", "language_model.model."),
    ("model.audio_tower.", "audio_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_THINKER: Names = (
    ("model.language_model.", "thinker.model."),
    ("model.audio_tower.", "thinker.audio_tower."),
    ("lm_head.", "thinker.lm_head."),
    # Read, too: names of the thinker's own class in transformers 4, and of the full model in 5.
    ("model.language_model.", "model."),
    ("model.audio_tower.", "audio_tower."),
    ("", "thinker."),
)
# How the parameters' names begin here, and in released checkpoints; other families call them the same.
PUBLISHED: dict[str, Names] = {
    "embedded": (("decoder.", "model."),),
    "qwen2_audio": _AUDIO_CHAT,
    "audio_flamingo3": _AUDIO_CHAT,
    "voxtral": _AUDIO_CHAT,
    "granite_speech": (
        ("model.language_model.", "language_model.model."),
        ("model.encoder.", "encoder."),
        ("model.projector.", "projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "qwen25_omni": _THINKER,
    "qwen3_omni": _THINKER,
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """What training added to a base model.

    Attributes:
        matrices: LoRA as `parts.lora` has it: `STEM.lora_A` and `STEM.lora_B`, the scale inside B.
        whole: Parameters trained in full beside it (a connector), by name.
        base: Checkpoint that they are added to: a folder, or a name on a model hub.
    """

    matrices: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]
    base: str


def trained(module: nn.Module, base: str) -> Adapter:
    """The LoRA of a module that was prepared for training, and the other parameters trained with it."""
    whole = {
        name: parameter.detach().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }
    return Adapter(lora.collect(module), whole, base)


def keep(adapter: Adapter, checkpoint_folder: Path) -> None:
    """Write an adapter beside the merged weights that `save` wrote, under the names of this package; without LoRA there
    is none."""
    if adapter.matrices:
        write(checkpoint_folder / KEPT, adapter)


def kept(checkpoint_folder: Path) -> Adapter:
    """What `keep` wrote.

    Raises:
        ModelError: if the model was not trained with LoRA, or the adapter was not kept.
    """
    if not (checkpoint_folder / KEPT / CONFIG).is_file():
        raise ModelError(
            f"{checkpoint_folder}: no adapter was kept here (trained in full, or not by this package); "
            "export it with --format merged"
        )
    return read(checkpoint_folder / KEPT)


def renamed(adapter: Adapter, names: Names, *, drop_others: bool = False) -> Adapter:
    """The same adapter with the beginnings of its names replaced, first fitting pair; `drop_others` leaves out what no
    pair fits."""

    def other(name: str) -> str | None:
        for ours, theirs in names:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        return None if drop_others else name

    matrices, whole = (
        {new: value for name, value in part.items() if (new := other(name)) is not None}
        for part in (adapter.matrices, adapter.whole)
    )
    return Adapter(matrices, whole, adapter.base)


def write(folder: Path, adapter: Adapter) -> None:
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
    others = {stem: value for stem, value in ranks.items() if value != rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.whole}) or None,
        "inference_mode": True,
    }
    state = {f"{PREFIX}{name}.weight": value for name, value in adapter.matrices.items()}
    state |= {f"{PREFIX}{name}": value for name, value in adapter.whole.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.cpu().contiguous() for name, value in state.items()}, folder / checkpoint.ADAPTER, {"format": "pt"}
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Adapter:
    """An adapter as PEFT wrote it, names as they stand in the file without `base_model.model.`.

    Raises:
        ModelError: if it is pickled, no LoRA, of a kind that is more than B @ A (DoRA, biases), or its files are
            broken.
    """
    path = folder / checkpoint.ADAPTER
    if not path.exists():
        pickled = folder / "adapter_model.bin"
        reason = "pickled weights can run code and are not read; save it as safetensors" if pickled.exists() else ""
        raise ModelError(f"{pickled}: {reason}" if reason else f"{path}: not here; copy the adapter whole")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(path)
    except Exception as error:  # safetensors raises its own, undeclared class
        raise ModelError(f"{folder}: not an adapter that can be read ({error}); copy it again") from error
    strange = [
        f"{key} {value!r}"
        for key, value in (
            ("peft_type", config.get("peft_type") != "LORA" and config.get("peft_type")),
            ("use_dora", config.get("use_dora")),
            ("bias", config.get("bias", "none") != "none" and config.get("bias")),
        )
        if value
    ]
    if strange:
        raise ModelError(f"{folder / CONFIG}: {', '.join(strange)} is not plain LoRA; merge it with PEFT first")
    matrices: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        stem, kind, _ = name.partition(".lora_")
        if not kind:
            whole[name] = value
        elif name.endswith("lora_A.weight"):
            matrices[f"{stem}.lora_A"] = value
        elif name.endswith("lora_B.weight"):
            matrices[f"{stem}.lora_B"] = value.float() * _scale(config, stem, value.shape[1])
        else:
            raise ModelError(f"{path}: {key} is not LoRA of a linear layer; merge it with PEFT first")
    return Adapter(matrices, whole, str(config.get("base_model_name_or_path") or ""))


@torch.no_grad()
def merge(module: nn.Module, adapter: Adapter, names: Names, where: Path) -> None:
    """Add an adapter to the weights of a module, in place (float32 sum, rounded once).

    Args:
        module: The base model.
        adapter: Under the module's names, or under the published ones.
        names: The family's pairs of `PUBLISHED`.
        where: Names the adapter in errors.
    Raises:
        ModelError: if it belongs to parameters that the module has not, or of another shape; nothing is changed then.
    """
    weights = dict(module.named_parameters())
    stems = sorted({name.rpartition(".lora_")[0] for name in adapter.matrices})
    targets = {name: _own(name, names, weights) for name in (*(f"{stem}.weight" for stem in stems), *adapter.whole)}
    unknown = {name for name, own in targets.items() if own not in weights}
    halves = {stem for stem in stems for half in "AB" if f"{stem}.lora_{half}" not in adapter.matrices}
    if unknown or halves:
        checkpoint.check_keys(where, halves, unknown, (), "an adapter of this family, made for this model")
    changes = {
        targets[f"{stem}.weight"]: adapter.matrices[f"{stem}.lora_B"].float()
        @ adapter.matrices[f"{stem}.lora_A"].float()
        for stem in stems
    } | {targets[name]: value for name, value in adapter.whole.items()}
    misshapen = {
        (name, tuple(change.shape), tuple(weights[name].shape))
        for name, change in changes.items()
        if change.shape != weights[name].shape
    }
    checkpoint.check_keys(
        where, (), (), checkpoint.misshapen(misshapen), "an adapter of this family, made for this model"
    )
    replaced = {targets[name] for name in adapter.whole}
    for name, change in changes.items():
        weight = weights[name]
        change = change.to(weight.device)
        weight.copy_((change if name in replaced else weight.float() + change).to(weight.dtype))


def revision(base: str, folder: Path) -> str:
    """Names the weights of a base with the adapter of a folder merged in: twelve hexadecimal digits."""
    return hashlib.sha256(f"{base} {checkpoint.digest([folder / checkpoint.ADAPTER])}".encode()).hexdigest()[:12]


def base_of(adapter: Adapter, folder: Path, family: str) -> Path | None:
    """The folder of the checkpoint that an adapter is added to, fetched from a model hub if it is only a name there;
    None if it is what the family takes where no weights are given.

    Raises:
        ModelError: if the adapter names none, or it is neither here nor to be had.
    """
    if not adapter.base:
        raise ModelError(f"{folder / CONFIG}: names no base_model_name_or_path; put the base checkpoint's folder there")
    for path in (Path(adapter.base), folder / adapter.base):
        if path.is_dir():
            return path
    if adapter.base == family:
        return None
    return checkpoint.from_hub(
        adapter.base, f"{folder}: its base model {adapter.base} is no folder here",
        f"put the base checkpoint's folder into {CONFIG}",
    )  # fmt: skip


def _own(name: str, names: Names, weights: Mapping[str, Tensor]) -> str:
    """The module's name of a parameter that may be called as published; as it stands if neither fits."""
    for ours, theirs in names:
        if name.startswith(theirs) and ours + name[len(theirs) :] in weights:
            return ours + name[len(theirs) :]
    return name


def _scale(config: Mapping[str, Any], stem: str, rank: int) -> float:
    """alpha / r of one layer, as PEFT finds it: patterns are ends of module names."""
    alpha = config.get("lora_alpha") or rank
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", stem):
            alpha = value
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
