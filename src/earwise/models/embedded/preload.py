"""The embedded model's weights as tensors, read while transformers is still being imported.

Either takes seconds and neither needs the other: `start` reads on a second thread (torch and safetensors only, which
let go of the interpreter while they work), `take` hands over what it found. Below `embedded.py`, which makes a model of
the tensors; a command that is about to load the default model calls `start` first.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from earwise.errors import ModelError
from earwise.models.embedded import base_weights
from earwise.models.parts import lora

ASSETS = Path(__file__).parents[2] / "assets" / "embedded"
ALIGNED_RANK = "aligned_rank"  # mark in the shipped file: how many of its LoRA ranks the first stage trained
_started: dict[tuple[Path, bool], "Future[EmbeddedWeights]"] = {}


@dataclass(frozen=True, slots=True)
class EmbeddedWeights:
    """Everything that is stored of the embedded model, float32.

    Attributes:
        encoder: Whisper base's encoder.
        decoder: SmolLM2's. In both, `merged_lora` is merged, and what was trained in full is in its place.
        connector: What was trained of it; empty for an untrained one.
        merged_lora: LoRA matrices, `encoder.` or `decoder.` and the name of the weight they belong to.
        full_weights: Names, of the same kind, of weights that were trained in full.
        revision: Hash of the trained file.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    connector: dict[str, Tensor]
    merged_lora: dict[str, Tensor]
    full_weights: frozenset[str]
    revision: str


def start_loading() -> None:
    """Begin to read the shipped model, if its base weights are there already."""
    if (base_weights.cache_dir() / base_weights.BASE / "complete").exists():
        pool = ThreadPoolExecutor(1, "earwise-weights")
        _started[(ASSETS, False)] = pool.submit(_read, base_weights.cache_dir() / base_weights.BASE, ASSETS, False)
        pool.shutdown(wait=False)


def load_weights(folder: Path | None, *, aligned: bool = False) -> EmbeddedWeights:
    """EmbeddedWeights with the trained part of a folder.

    Args:
        folder: Holds `trained.safetensors`; None is the base alone.
        aligned: Of the shipped file, only what its first stage trained.
    Raises:
        ModelError: if there is no trained part, it is no safetensors file, or it does not fit the base.
    """
    base = base_weights.base_folder()
    ahead = _started.pop((folder, aligned), None) if folder is not None else None
    return ahead.result() if ahead is not None else _read(base, folder, aligned)


def _read(base: Path, folder: Path | None, aligned: bool) -> EmbeddedWeights:
    encoder, decoder = (tensors(base / f"{part}.safetensors")[0] for part in ("encoder", "decoder"))
    if folder is None:
        return EmbeddedWeights(encoder, decoder, {}, {}, frozenset(), "blank")
    path = folder / "trained.safetensors"
    if not path.exists():
        raise ModelError(
            f"{path}: no trained part of the embedded model here; give a checkpoint folder made by `earwise train`"
        )
    state, marks = tensors(path)
    weights = {f"encoder.{name}": value for name, value in encoder.items()}
    weights |= {f"decoder.{name}": value for name, value in decoder.items()}
    merged_lora = {name: value for name, value in state.items() if name.endswith((".lora_A", ".lora_B"))}
    full_weights = {name for name in state if name in weights}
    unexpected = sorted(state.keys() - merged_lora.keys() - full_weights - {n for n in state if n.startswith("connector.")})
    if unexpected:
        raise ModelError(f"{path}: unexpected tensor {unexpected[0]}; give a folder made by `earwise train`")
    if aligned:
        merged_lora = lora.first_ranks(merged_lora, int(marks[ALIGNED_RANK]))
    try:
        lora.merge(weights, merged_lora)
        for name in full_weights:
            weights[name].copy_(state[name])
    except (RuntimeError, KeyError) as error:
        raise ModelError(
            f"{path}: does not fit this version of the embedded model: {str(error).splitlines()[-1].strip()}"
        ) from error
    revision = hashlib.sha256(path.read_bytes()).hexdigest()[:12] + ("-aligned" if aligned else "")
    return EmbeddedWeights(encoder, decoder, _under("connector.", state), merged_lora, frozenset(full_weights), revision)


def tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file as float32, and the marks in its header.

    Raises:
        ModelError: if it is no safetensors file.
    """
    try:
        with safe_open(str(path), "pt") as handle:
            state = {key: handle.get_tensor(key).float() for key in handle.keys()}  # noqa: SIM118 - not a dict
            return state, handle.metadata() or {}
    except Exception as error:  # safetensors raises its own, undeclared class
        raise ModelError(f"{path}: not a safetensors file ({error}); train or copy it again") from error


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
