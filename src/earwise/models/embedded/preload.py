"""The embedded model's weights as tensors, read in the background while transformers is being imported.

Reading and importing take seconds each and do not depend on each other: `start_loading` reads in a second thread (only
torch and safetensors, which release the interpreter lock), and `load_weights` returns the result. A command that is
about to load the default model calls `start_loading` first. `models.embedded.model` builds the model from the tensors.

A model that only answers, and computes in bfloat16 or int8, is packed layer by layer while its file is read, so that
the float32 weights of its layers never exist all at once.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from earwise.errors import ModelError
from earwise.models.embedded import base_weights
from earwise.models.embedded.spoken_words import GATE_PREFIX
from earwise.models.parts import lora
from earwise.models.precision import compute, packed_linear

ASSETS = Path(__file__).parents[2] / "assets" / "embedded"
ALIGNED_RANK = "aligned_rank"
"""Metadata key of the shipped file: how many of its LoRA ranks the first stage trained."""
MIX = "mix."
"""Beginning of the names of the weights that the connector `labels` has from the connector `mix` of the first stage."""
_pending: dict[tuple[Path, bool, str | None], "Future[EmbeddedWeights]"] = {}


@dataclass(frozen=True, slots=True)
class EmbeddedWeights:
    """All stored tensors of the embedded model, in float32 but for LoRA.

    Attributes:
        encoder: Weights of Whisper base's encoder, with LoRA merged and fully trained weights in place.
        decoder: Weights of SmolLM2, with LoRA merged and fully trained weights in place.
        connector: Weights of the connector; empty for an untrained one.
        merged_lora: The LoRA matrices as they are stored (float16 in the shipped file), merged unless `load_weights`
            was asked not to; by `encoder.` or `decoder.` and the name of the weight.
        full_weights: Names, with the same prefixes, of weights that were trained in full.
        revision: Hash of the trained file.
        speech_gate: Weights of the speech gate (`models.embedded.spoken_words`); empty without one.
        plan: What the decoder was packed for; None if it was not.
        packed: The decoder's packed layers by name, which `decoder` and `merged_lora` then lack.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    connector: dict[str, Tensor]
    merged_lora: dict[str, Tensor]
    full_weights: frozenset[str]
    revision: str
    speech_gate: dict[str, Tensor] = field(default_factory=dict)
    plan: compute.ComputePlan | None = None
    packed: dict[str, packed_linear.PackedLinear] = field(default_factory=dict)


def start_loading(answers_in: str | None = None) -> None:
    """Start reading the shipped model in the background, if its base weights are already downloaded; the argument is
    that of `load_weights`."""
    if (base_weights.cache_dir() / base_weights.BASE / "complete").exists():
        pool = ThreadPoolExecutor(1, "earwise-weights")
        base = base_weights.cache_dir() / base_weights.BASE
        choice = None if torch.cuda.is_available() else answers_in
        _pending[(ASSETS, False, choice)] = pool.submit(_read, base, ASSETS, answers_in=choice)
        pool.shutdown(wait=False)


def load_weights(
    folder: Path | None, *, aligned: bool = False, merge: bool = True, answers_in: str | None = None
) -> EmbeddedWeights:
    """The base weights with the trained part of a folder.

    Args:
        folder: Folder with `trained.safetensors`; None returns the base weights alone.
        aligned: True uses only what the first stage of the shipped file trained.
        merge: False leaves the LoRA out of the weights, for weights that are then rounded.
        answers_in: For a model on the CPU that only answers: the choice of its `compute`, for which its layers are
            packed if that choice allows it. None keeps all weights.
    Raises:
        ModelError: if there is no trained part, it is not a safetensors file, or it does not fit the base weights.
    """
    base = base_weights.base_folder()
    future = _pending.pop((folder, aligned, answers_in), None) if folder is not None and merge else None
    if future is not None:
        return future.result()
    return _read(base, folder, aligned=aligned, merge=merge, answers_in=answers_in)


def _read(
    base: Path, folder: Path | None, *, aligned: bool = False, merge: bool = True, answers_in: str | None = None
) -> EmbeddedWeights:
    """Read base weights and trained part; see `load_weights`."""
    encoder, decoder = (tensors(base / f"{part}.safetensors")[0] for part in ("encoder", "decoder"))
    if folder is None:
        return EmbeddedWeights(encoder, decoder, {}, {}, frozenset(), "blank")
    path = folder / "trained.safetensors"
    if not path.exists():
        raise ModelError(
            f"{path}: no trained part of the embedded model here; give a checkpoint folder made by `earwise train`"
        )
    stored, metadata = stored_tensors(path)
    weights = {f"encoder.{name}": value for name, value in encoder.items()}
    weights |= {f"decoder.{name}": value for name, value in decoder.items()}
    merged_lora = {name: value for name, value in stored.items() if name.endswith((".lora_A", ".lora_B"))}
    trained = {name: value if name in merged_lora else value.float() for name, value in stored.items()}
    full_weights = {name for name in trained if name in weights}
    parts = {
        prefix: {name.removeprefix(prefix): trained[name] for name in sorted(trained) if name.startswith(prefix)}
        for prefix in ("connector.", GATE_PREFIX)
    }
    known = {f"{prefix}{name}" for prefix, part in parts.items() for name in part}
    unexpected = sorted(trained.keys() - merged_lora.keys() - full_weights - known)
    if unexpected:
        raise ModelError(f"{path}: unexpected tensor {unexpected[0]}; give a folder made by `earwise train`")
    connector = parts["connector."]
    if aligned:
        merged_lora = lora.first_ranks(merged_lora, int(metadata[ALIGNED_RANK]))
        connector = {name.removeprefix(MIX): value for name, value in connector.items() if name.startswith(MIX)}
    plan = None if answers_in is None else _packed_plan(base, answers_in)
    packed: dict[str, packed_linear.PackedLinear] = {}
    try:
        if plan is not None:
            packed = _pack_layers(base / "decoder.safetensors", decoder, merged_lora, trained, plan)
            for name in packed:
                del decoder[f"{name}.weight"], weights[f"decoder.{name}.weight"]
            stems = {f"decoder.{name}" for name in packed}
            merged_lora = {name: value for name, value in merged_lora.items() if name.rpartition(".")[0] not in stems}
        if merge:
            lora.merge(weights, merged_lora)
        for name in full_weights & weights.keys():
            weights[name].copy_(trained[name])
    except (RuntimeError, KeyError) as error:
        raise ModelError(
            f"{path}: does not fit this version of the embedded model: {str(error).splitlines()[-1].strip()}"
        ) from error
    revision = hashlib.sha256(path.read_bytes()).hexdigest()[:12] + ("-aligned" if aligned else "")
    return EmbeddedWeights(
        encoder, decoder, connector, merged_lora, frozenset(full_weights), revision,
        speech_gate={} if aligned else parts[GATE_PREFIX], plan=plan, packed=packed,
    )  # fmt: skip


def _packed_plan(base: Path, choice: str) -> compute.ComputePlan | None:
    """The plan of a choice of `compute`; None if it leaves the decoder's weights as they are."""
    if choice == "auto":
        encoder, decoder = (json.loads((base / f"{part}.json").read_text()) for part in ("encoder", "decoder"))
        plan = compute.measured_plan(
            (encoder["encoder_ffn_dim"], encoder["d_model"]), (decoder["intermediate_size"], decoder["hidden_size"])
        )
    else:
        plan = compute.PLANS.get(choice, compute.FLOAT32)  # an unknown choice is refused where it is set
    return plan if compute.can_pack(plan) else None


def _pack_layers(
    path: Path, decoder: Iterable[str], merged_lora: Mapping[str, Tensor], trained: Mapping[str, Tensor],
    plan: compute.ComputePlan,
) -> dict[str, packed_linear.PackedLinear]:  # fmt: skip
    """Read and pack the linear layers of the decoder, one decoder layer at a time: the file is opened anew for each, so
    that what was read of it before leaves the memory.

    Args:
        path: File of the decoder's base weights.
        decoder: Names of all of its weights.
        merged_lora: LoRA to merge, as in `EmbeddedWeights`.
        trained: All that was trained, by the same names.
        plan: What to pack for.
    Returns:
        The packed layers by name, without `decoder.`.
    """
    names_of_layer: defaultdict[str, list[str]] = defaultdict(list)
    for name in decoder:
        if name.startswith("layers.") and name.endswith("_proj.weight"):
            names_of_layer[".".join(name.split(".")[:2])].append(name)
    packed: dict[str, packed_linear.PackedLinear] = {}
    for layer, names in names_of_layer.items():
        with safe_open(str(path), "pt") as handle:
            weights = {f"decoder.{name}": handle.get_tensor(name).float() for name in names}
        prefix = f"decoder.{layer}."
        lora.merge(weights, {name: value for name, value in merged_lora.items() if name.startswith(prefix)})
        weights |= {name: trained[name] for name in weights.keys() & trained.keys()}
        weights = {name.removeprefix("decoder."): value for name, value in weights.items()}
        packed |= packed_linear.pack_by_name(weights, compute.packed_dtype(plan))
        del weights
    return packed


def tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file as float32, and its metadata.

    Raises:
        ModelError: if it is not a safetensors file.
    """
    values, metadata = stored_tensors(path)
    return {name: value.float() for name, value in values.items()}, metadata


def stored_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, mapped into memory, and its metadata.

    Raises:
        ModelError: if it is not a safetensors file.
    """
    try:
        with safe_open(str(path), "pt") as handle:
            values = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a dict
            return values, handle.metadata() or {}
    except Exception as error:  # safetensors raises a class of its own that it does not export
        raise ModelError(f"{path}: not a safetensors file ({error}); train or copy it again") from error
