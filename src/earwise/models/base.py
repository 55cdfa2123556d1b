"""The contract of a model: an audio encoder, a connector and a decoder, and what the rest of earwise must know of them.

Stages, engines, evaluation and server use a model through `AudioLM` only. `load` finds the loader of a family in the
table of `models/registry.py`, or a user's own as `module:function`.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from earwise.audio import AudioSpec
from earwise.config.resolve import resolve_entry
from earwise.errors import ConfigError, ModelError
from earwise.files import expand_home
from earwise.models import hub, registry
from earwise.models.detect import FLOAT32_FOLDER, PEFT_CONFIG, find_checkpoint
from earwise.models.parts.attention import AttentionFn
from earwise.models.tokenizer import TextTokenizer
from earwise.prompts import ChatTemplate
from earwise.types import Waveform


class AudioLM(Protocol):
    """One loaded model.

    Attributes:
        name: Family and size, as in `earwise models`.
        revision: Hash of the trained weights, for result rows.
        module: All parameters; what a stage trains, saves and moves between devices.
        spec: Sample rate, longest clip and token rate of the audio input.
        template: Chat format.
        tokenizer: Text to token ids and back.
        placeholder_id: Id of the token that audio embeddings replace.
        eos_ids: Ids of the tokens that end a completion; training writes the first.
        parameter_prefixes: `encoder`, `connector` and `decoder` -> beginnings of their parameters' names, for freezing
            and for LoRA. The first of each names the module that LoRA is added to.
        trims_padding: True if the encoder is given only frames that contain audio, False if every clip is padded to the
            window. For an encoder that masks padding both give the same states; for one that does not, the model has
            to be used as it was trained.
        masks_padding: True if the encoder masks padding, so that trimming changes only the speed.
    """

    name: str
    revision: str
    module: nn.Module
    spec: AudioSpec
    template: ChatTemplate
    tokenizer: TextTokenizer
    placeholder_id: int
    eos_ids: tuple[int, ...]
    parameter_prefixes: Mapping[str, tuple[str, ...]]
    trims_padding: bool
    masks_padding: bool

    def audio_tokens(self, samples: int) -> int:
        """Number of audio tokens of a clip of `samples` samples."""
        ...

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """The encoder's states of each clip. They may be reused as long as the encoder is not trained."""
        ...

    def project_audio(self, encoder_states: Sequence[Tensor]) -> list[Float[Tensor, "audio_seq dim"]]:
        """The connector's embeddings of each clip for the decoder, `audio_tokens` rows per clip."""
        ...

    def embed(self, ids: Int[Tensor, "*seq"]) -> Float[Tensor, "seq dim"]:
        """Text embeddings."""
        ...

    def decode(
        self, embeddings: Float[Tensor, "seq dim"], positions: Int[Tensor, "*seq"], attend: AttentionFn
    ) -> Float[Tensor, "seq dim"]:
        """Decoder states of packed tokens after the final norm; `attend` computes the attention of each layer."""
        ...

    def logits(self, hidden: Float[Tensor, "seq dim"]) -> Float[Tensor, "seq vocab"]:
        """Next-token scores."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` needs to get the same model back, bit for bit."""
        ...


@dataclass(frozen=True, slots=True)
class EmptyModel:
    """A model without weights, on the meta device, to count its parameters.

    Attributes:
        module: The modules with their shapes.
        parameter_prefixes: See `AudioLM`.
        spec: See `AudioLM`.
    """

    module: nn.Module
    parameter_prefixes: Mapping[str, tuple[str, ...]]
    spec: AudioSpec


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def best_device() -> str:
    """This process's CUDA device if there is one (`LOCAL_RANK` gives its number), else the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load(
    name: str, weights: Path | str | None = None, *, device: str | None = None, dtype: str | None = None,
    trim: bool | None = None, connector: Mapping[str, Any] | None = None, decoder_init: str | None = None,
    seed: int | None = None, answers_in: str | None = None,
) -> AudioLM:  # fmt: skip
    """Load a model of a family, from a folder, or by a user's own `module:function`.

    Options left at None are not passed to the loader, so that a user's loader needs to know only those that its recipe
    sets.

    Args:
        name: Name of a family, `module:function`, a model of a hub (see `hub.py`), or a folder with a checkpoint or a
            training run (see `detect.find_checkpoint`).
        weights: Checkpoint folder, or a folder with a PEFT adapter, which is applied to its base model, or the name of
            either on a hub; None takes the family's default.
        device: Device to put the model on; None is `best_device()`.
        dtype: Dtype of the weights, a key of `DTYPES`; None is the family's default (float32, or as stored).
        trim: See `AudioLM.trims_padding`; None is the family's or the checkpoint's own.
        connector: Untrained connector to build, as `config.ConnectorConfig` describes it; None is the family's own.
        decoder_init: `random` initialises the decoder at random; None keeps its trained weights.
        seed: Seed of random initialisation; None is the loader's default.
        answers_in: For a model that only answers: the choice of `compute` that it is going to be set to
            (`precision.compute.set_compute`). A loader that knows this option packs the weights while it reads them, so
            that they never stand in float32 as a whole; others ignore it.
    Raises:
        ModelError: if the name or the dtype is unknown, the loader does not take an option, or the checkpoint does not
            fit.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    name = expand_home(name)
    weights = expand_home(weights) if isinstance(weights, str) else weights
    if isinstance(weights, str) and not Path(weights).is_dir() and hub.is_hub_name(weights):
        weights = hub.fetch(weights).folder
    if weights is None and hub.is_hub_name(name):
        name = str(hub.fetch(name).folder)
    if weights is None and Path(name).is_dir():
        name, weights = find_checkpoint(Path(name))
    elif "/" in name and ":" not in name:
        raise ModelError(
            f"{name}: no such folder; check the path, or name a family (see `earwise models`) or a model of a hub, "
            "ORGANISATION/MODEL"
        )
    if weights is not None and _is_peft_adapter(name, Path(weights)):
        return _load_peft_adapter(name, Path(weights), device, dtype, trim)
    try:
        loader = resolve_entry(registry.loaders(), name, "model")
    except ConfigError as error:
        hint = "" if error.__cause__ else ", or a folder with a model"  # with a cause, the module failed, not its name
        raise ModelError(f"{error}{hint}") from error
    if not callable(loader):
        raise ModelError(f"model {name!r} is a {type(loader).__name__}, not a function load(weights, *, device)")
    options: dict[str, Any] = {"dtype": DTYPES[dtype] if dtype else None, "trim": trim}
    options |= {"connector": connector, "decoder_init": decoder_init, "seed": seed}
    options = {key: value for key, value in options.items() if value is not None}
    if answers_in is not None and "answers_in" in inspect.signature(loader).parameters:
        options["answers_in"] = answers_in
    unknown = options.keys() - inspect.signature(loader).parameters.keys()
    if unknown:
        key = sorted(unknown)[0]
        raise ModelError(f"model {name!r}: its loader takes no {key}; leave model.{key} out of the recipe")
    model: AudioLM = loader(Path(weights) if weights is not None else None, device=device or best_device(), **options)
    if weights is not None and (Path(weights) / FLOAT32_FOLDER).is_dir():
        from earwise.models.precision import float32_values

        exact = float32_values.read(Path(weights))
        float32_values.apply(model.module, exact, float32_prefixes=model.parameter_prefixes["connector"])
    return model


def _is_peft_adapter(name: str, folder: Path) -> bool:
    """True if the folder holds a PEFT adapter that has to be merged here; a family's loader merges one that belongs to
    its published checkpoints itself."""
    family = registry.find(name)
    merged_by_loader = family is not None and family.lora_in_checkpoint and (folder / "config.json").is_file()
    return not merged_by_loader and (folder / PEFT_CONFIG).is_file()


def _load_peft_adapter(name: str, folder: Path, device: str | None, dtype: str | None, trim: bool | None) -> AudioLM:
    """Load a base model and apply the PEFT adapter of `folder` to it."""
    from earwise.models import lora_checkpoint

    if (folder / "config.json").exists():
        raise ModelError(f"{folder}: holds a whole checkpoint and an adapter; move one of them to a folder of its own")
    if name.startswith("embedded"):
        raise ModelError(f"{folder}: an adapter holds no connector; name the folder with trained.safetensors instead")
    adapter = lora_checkpoint.read(folder)
    model = load(name, lora_checkpoint.find_base(adapter, folder, name), device=device, dtype=dtype, trim=trim)
    lora_checkpoint.apply(
        model.module, adapter, registry.parameter_names(name), folder,
        float32_prefixes=model.parameter_prefixes["connector"],
    )  # fmt: skip
    model.revision = lora_checkpoint.merged_revision(model.revision, folder)
    return model
