"""The contract of a model: an encoder, a connector, a decoder, and what the rest must know of them.

Every family is a frozen description plus a few functions on tensors; stages, engines, evaluation and server use nothing
else. Families stand in `MODELS`, an explicit table; a user's own is `module:function`.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from earwise.audio import AudioSpec
from earwise.config.resolve import resolve_entry
from earwise.errors import ConfigError, ModelError
from earwise.models.detect import ADAPTER, checkpoint
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
        spec: What the encoder hears.
        template: Chat format.
        tokenizer: Text to token ids and back.
        placeholder_id: Token id that stands for audio embeddings.
        eos_ids: Token ids that end a completion; the first is written by training.
        groups: Parameter-name prefixes of `encoder`, `connector` and `decoder`, for freezing and LoRA.
        trims: True if the encoder hears only frames that exist, False if every clip is padded to the window. For an
            encoder that masks padding both are the same; for one that does not, it is part of what was trained.
        masks: True if the encoder masks padding, so that trimming is exact and only a matter of speed.
    """

    name: str
    revision: str
    module: nn.Module
    spec: AudioSpec
    template: ChatTemplate
    placeholder_id: int
    eos_ids: tuple[int, ...]
    groups: Mapping[str, tuple[str, ...]]
    trims: bool
    masks: bool

    def audio_tokens(self, samples: int) -> int:
        """Number of audio tokens of a clip of `samples` samples."""
        ...

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """The encoder's part, once per clip; may be kept while the encoder is frozen."""
        ...

    def project_audio(self, heard: Sequence[Tensor]) -> list[Float[Tensor, "audio_seq dim"]]:
        """The connector's part: embeddings for the decoder, `audio_tokens` rows per clip."""
        ...

    def embed(self, ids: Int[Tensor, "*seq"]) -> Float[Tensor, "seq dim"]:
        """Text embeddings."""
        ...

    def decode(
        self, embeddings: Float[Tensor, "seq dim"], positions: Int[Tensor, "*seq"], attend: AttentionFn
    ) -> Float[Tensor, "seq dim"]:
        """Decoder states of packed tokens (final norm applied); attention is `attend`'s business."""
        ...

    def logits(self, hidden: Float[Tensor, "seq dim"]) -> Float[Tensor, "seq vocab"]:
        """Next-token scores."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` needs to get the same model back, bit for bit."""
        ...


MODELS = {
    "embedded": "earwise.models.embedded.model:load",
    "embedded-aligned": "earwise.models.embedded.model:load_aligned",
    "embedded-blank": "earwise.models.embedded.model:load_blank",
    "qwen2_audio": "earwise.models.families.qwen2_audio:load",
    "qwen25_omni": "earwise.models.families.qwen25_omni:load",
    "salmonn": "earwise.models.families.salmonn:load",
    "mellow": "earwise.models.families.mellow:load",
    "qwen3_omni": "earwise.models.families.native:qwen3_omni",
    "audio_flamingo3": "earwise.models.families.native:audio_flamingo3",
    "voxtral": "earwise.models.families.native:voxtral",
    "granite_speech": "earwise.models.families.native:granite_speech",
    "phi4_multimodal": "earwise.models.families.native:phi4_multimodal",
    "gemma3n": "earwise.models.families.native:gemma3n",
}

WITH_ADAPTER = ("granite_speech",)
"""Families whose released checkpoints hold an adapter beside the weights; their loaders merge it."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def best_device() -> str:
    """This process's CUDA device if there is one (`LOCAL_RANK` says which), else the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load(
    name: str, weights: Path | str | None = None, *, device: str | None = None, dtype: str | None = None,
    trim: bool | None = None, connector: Mapping[str, Any] | None = None, decoder_init: str | None = None,
    seed: int | None = None,
) -> AudioLM:  # fmt: skip
    """Load a model of the table, or of a user's own `module:function`.

    Args:
        name: Key of `MODELS`, `module:function`, or a folder (see `folder.checkpoint`): a checkpoint, a training run.
        weights: Checkpoint folder, or a folder with LoRA as PEFT writes it, which is merged into its base; None takes
            the family's default.
        device: Where to put it; None is `best_device()`.
        dtype: Key of `DTYPES` for the weights; None is the family's default (float32, or as the checkpoint is stored).
        trim: See `AudioLM.trims`; None is the family's or the checkpoint's own.
        connector: Which untrained connector to build, as `config.ConnectorConfig` says; None is the family's own.
        decoder_init: `random` draws the decoder anew; None is as trained.
        seed: Of what is drawn; None is the loader's.
            What is None does not reach the loader: a `module:function` needs to know only what is asked of it.
    Raises:
        ModelError: if the name or the dtype is unknown, or the checkpoint does not fit.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if weights is None and Path(name).is_dir():
        name, weights = checkpoint(Path(name))
    elif "/" in name and ":" not in name:
        raise ModelError(f"{name}: no such folder; check the path, or name a family (see `earwise models`)")
    own = name in WITH_ADAPTER and weights is not None and (Path(weights) / "config.json").is_file()
    if weights is not None and not own and (Path(weights) / ADAPTER).is_file():
        return _adapted(name, Path(weights), device, dtype, trim)
    try:
        loader = resolve_entry(MODELS, name, "model")
    except ConfigError as error:
        raise ModelError(f"{error}, or a folder with a model") from error
    asked: dict[str, Any] = {"dtype": DTYPES[dtype] if dtype else None, "trim": trim}
    asked |= {"connector": connector, "decoder_init": decoder_init, "seed": seed}
    given = {key: value for key, value in asked.items() if value is not None}
    strange = given.keys() - inspect.signature(loader).parameters.keys()
    if strange:
        key = sorted(strange)[0]
        raise ModelError(f"model {name!r}: its loader takes no {key}; leave model.{key} out of the recipe")
    model: AudioLM = loader(Path(weights) if weights is not None else None, device=device or best_device(), **given)
    return model


def _adapted(name: str, folder: Path, device: str | None, dtype: str | None, trim: bool | None) -> AudioLM:
    """A base model with the adapter of `folder` merged into its weights."""
    from earwise.models import lora_checkpoint

    if (folder / "config.json").exists():
        raise ModelError(f"{folder}: holds a whole checkpoint and an adapter; move one of them to a folder of its own")
    if name.startswith("embedded"):
        raise ModelError(f"{folder}: an adapter holds no connector; name the folder with trained.safetensors instead")
    changes = lora_checkpoint.read(folder)
    model = load(name, lora_checkpoint.base_of(changes, folder, name), device=device, dtype=dtype, trim=trim)
    lora_checkpoint.merge(model.module, changes, lora_checkpoint.PUBLISHED.get(name, ()), folder)
    model.revision = lora_checkpoint.revision(model.revision, folder)
    return model
