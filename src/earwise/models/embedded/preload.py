"""The embedded model's weights as tensors, read in the background while transformers is being imported.

Reading and importing take seconds each and do not depend on each other: `start_loading` reads in a second thread (only
torch and safetensors, which release the interpreter lock), and `load_weights` returns the result. A command that is
about to load the default model calls `start_loading` first. `models.embedded.model` builds the model from the tensors.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from earwise.errors import ModelError
from earwise.models.embedded import base_weights
from earwise.models.embedded.spoken_words import GATE_PREFIX
from earwise.models.parts import lora

ASSETS = Path(__file__).parents[2] / "assets" / "embedded"
ALIGNED_RANK = "aligned_rank"
"""Metadata key of the shipped file: how many of its LoRA ranks the first stage trained."""
MIX = "mix."
"""Beginning of the names of the weights that the connector `labels` has from the connector `mix` of the first stage."""
_pending: dict[tuple[Path, bool], "Future[EmbeddedWeights]"] = {}


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
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    connector: dict[str, Tensor]
    merged_lora: dict[str, Tensor]
    full_weights: frozenset[str]
    revision: str
    speech_gate: dict[str, Tensor] = field(default_factory=dict)


def start_loading() -> None:
    """Start reading the shipped model in the background, if its base weights are already downloaded."""
    if (base_weights.cache_dir() / base_weights.BASE / "complete").exists():
        pool = ThreadPoolExecutor(1, "earwise-weights")
        _pending[(ASSETS, False)] = pool.submit(_read, base_weights.cache_dir() / base_weights.BASE, ASSETS, False)
        pool.shutdown(wait=False)


def load_weights(folder: Path | None, *, aligned: bool = False, merge: bool = True) -> EmbeddedWeights:
    """The base weights with the trained part of a folder.

    Args:
        folder: Folder with `trained.safetensors`; None returns the base weights alone.
        aligned: True uses only what the first stage of the shipped file trained.
        merge: False leaves the LoRA out of the weights, for weights that are then rounded.
    Raises:
        ModelError: if there is no trained part, it is not a safetensors file, or it does not fit the base weights.
    """
    base = base_weights.base_folder()
    future = _pending.pop((folder, aligned), None) if folder is not None and merge else None
    return future.result() if future is not None else _read(base, folder, aligned, merge)


def _read(base: Path, folder: Path | None, aligned: bool, merge: bool = True) -> EmbeddedWeights:
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
    try:
        if merge:
            lora.merge(weights, merged_lora)
        for name in full_weights:
            weights[name].copy_(trained[name])
    except (RuntimeError, KeyError) as error:
        raise ModelError(
            f"{path}: does not fit this version of the embedded model: {str(error).splitlines()[-1].strip()}"
        ) from error
    revision = hashlib.sha256(path.read_bytes()).hexdigest()[:12] + ("-aligned" if aligned else "")
    return EmbeddedWeights(
        encoder,
        decoder,
        connector,
        merged_lora,
        frozenset(full_weights),
        revision,
        {} if aligned else parts[GATE_PREFIX],
    )


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
