"""The embedded model: Whisper base's encoder, a learned connector, and SmolLM2-135M-Instruct as decoder.

It is Qwen2-Audio's architecture at 1/50 of its size. Encoder and decoder have the parameter names of transformers'
classes, and no import of transformers (`models.parts.whisper`, `models.decoders.llama`). It runs on a laptop and is the
default everywhere. The base weights are downloaded (`models.embedded.base_weights`); what we trained, a connector and
LoRA (recipe `embedded`), ships in the package. Its first stage aligns the encoder on open recognition, its second
trains questions with options; `embedded-aligned` is the same file without the second stage's LoRA ranks.

Whisper's encoder does not mask padding, so its states depend on whether a clip is padded to the 30 s window (as in
Whisper's training) or trimmed to its real frames. That is decided where training starts (`model.trim` in the recipe;
padded by default), stored in the checkpoint, and never changed by loading. The shipped model trims; the effect is
measured by `benchmarks/trimming.py`.

Two parts can be chosen where training starts from `embedded-blank`: the connector (`models.embedded.connector`), and a
decoder with random weights. Both choices are stored in the checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from earwise.audio import LONG_AUDIO_REMEDY, AudioSpec, num_samples, seconds
from earwise.errors import AudioError, ModelError
from earwise.models import checkpoint
from earwise.models.decoders.llama import LlamaDecoder, LlamaSizes
from earwise.models.detect import MARKER
from earwise.models.embedded import base_weights, preload
from earwise.models.embedded.connector import STATE_MS, Connector, ConnectorSpec, build_connector, parse_connector_spec
from earwise.models.embedded.connector import SUMMARY as SUMMARY
from earwise.models.embedded.module import EmbeddedModule as EmbeddedModule
from earwise.models.embedded.module import random_decoder_weights
from earwise.models.embedded.spoken_words import GATE_PREFIX, WordListener, append_rows, split_rows
from earwise.models.parts import attention, lora, whisper
from earwise.models.precision import compute, lora_beside
from earwise.models.tokenizer import TextTokenizer, check_special_tokens
from earwise.prompts import EMBEDDED
from earwise.types import Waveform

POOL = ConnectorSpec().token_ms // STATE_MS
"""Encoder states per frame token of the shipped connector."""
STORED_PREFIXES = ("connector.", GATE_PREFIX)
"""Beginnings of the names of weights that every checkpoint stores."""
PLACEHOLDER = "<file_sep>"
"""A SmolLM2 token for code, which no conversation contains; audio embeddings replace its embedding."""


class Embedded:
    """The embedded model as an `AudioLM`.

    Args:
        module: Encoder, connector and decoder.
        tokenizer: SmolLM2's tokenizer.
        name: Name of the model.
        revision: Hash of the trained weights.
        merged_lora: LoRA matrices that are already merged into the weights.
        trim: True encodes real frames only, False pads every clip to 30 s.
        full_weights: Names of encoder and decoder weights that were trained in full, or are random.
        connector_spec: Which connector the module has; None is the shipped one.
    """

    def __init__(
        self, module: EmbeddedModule, tokenizer: Tokenizer, *, name: str, revision: str,
        merged_lora: Mapping[str, Tensor], trim: bool, full_weights: frozenset[str] = frozenset(),
        connector_spec: ConnectorSpec | None = None,
    ) -> None:  # fmt: skip
        self.module = module
        self.name = name
        self.revision = revision
        self.merged_lora = merged_lora
        """LoRA matrices that are merged into the weights. `save` writes them together with those trained since."""
        self.full_weights = full_weights
        """Names of encoder and decoder weights that were trained in full or are random; `save` writes them."""
        self.connector_spec = connector_spec or ConnectorSpec()
        """Which connector the module has."""
        self._words: WordListener | None = None
        self.spec = AudioSpec(sample_rate=16000, max_s=30.0, tokens_per_s=1000 / self.connector_spec.token_ms)
        self.template = EMBEDDED
        self.parameter_prefixes: dict[str, tuple[str, ...]] = {
            "encoder": ("encoder.",),
            "connector": ("connector.",),
            "decoder": ("decoder.", "head."),
        }
        self.trims_padding = trim
        self.masks_padding = False
        end_tokens = ("<|im_end|>", "<|endoftext|>")
        token_ids = check_special_tokens(tokenizer, (PLACEHOLDER, *end_tokens), name, "fetch the base weights again")
        self.placeholder_id = token_ids[PLACEHOLDER]
        self.eos_ids = tuple(token_ids[token] for token in end_tokens)
        self.tokenizer = TextTokenizer(tokenizer, self.placeholder_id, self.eos_ids, self.template)
        self._mels = module.encoder.num_mel_bins
        self.set_connector_spec(self.connector_spec)

    def set_connector_spec(self, connector_spec: ConnectorSpec) -> None:
        """Describe the connector and the speech gate that the module has, after they were changed."""
        self.connector_spec = connector_spec
        slots, gate = connector_spec.words, self.module.speech_gate
        self.parameter_prefixes["encoder"] = ("encoder.",) if gate is None else ("encoder.", GATE_PREFIX)
        self._words = WordListener(slots, gate, self.tokenizer.encode, self.spec.sample_rate) if slots else None

    @property
    def _connector(self) -> Connector:
        connector: Any = self.module.connector
        return connector

    def audio_tokens(self, samples: int) -> int:
        """Number of audio tokens of a clip; see the connector's `token_count`, and `WordListener.num_tokens`.

        Raises:
            AudioError: if the clip is empty or longer than 30 s.
        """
        if not 0 < samples <= num_samples(self.spec.max_s, self.spec.sample_rate):
            length_s = seconds(samples, self.spec.sample_rate)
            raise AudioError(
                f"clip lasts {length_s:.2f} s, {self.name} takes up to {self.spec.max_s:.0f} s; {LONG_AUDIO_REMEDY}"
            )
        word_tokens = self._words.num_tokens(samples) if self._words else 0
        return self._connector.token_count(whisper.state_count(samples)) + word_tokens

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """The states of each clip that the connector needs, on the CPU or the encoder's device.

        Returns:
            For each clip the connector's `reduce_states`; for the shipped one `(layers, 2 + windows, dim)`. Behind them
            stand the rows of `spoken_words.append_rows`, if the connector shows words.
        """
        if not waveforms:
            return []
        window_s = None if self.trims_padding else self.spec.max_s
        mels = [whisper.log_mel(waveform, self._mels, window_s) for waveform in waveforms]
        layer_states = whisper.layer_states(self.module.encoder, mels)
        counts = [whisper.state_count(len(waveform)) for waveform in waveforms]
        reduced = [
            self._connector.reduce_states(layers[:, :count].float())
            for layers, count in zip(layer_states, counts, strict=True)
        ]
        if self._words is None:
            return reduced
        words = [
            self._words.listen(self.module.encoder, waveform, layers, count, trims_padding=self.trims_padding)
            for layers, count, waveform in zip(layer_states, counts, waveforms, strict=True)
        ]
        return [append_rows(states, stored) for states, stored in zip(reduced, words, strict=True)]

    def project_audio(self, encoder_states: Sequence[Tensor]) -> list[Tensor]:
        """Audio embeddings of each clip, `(audio_seq, dim)`, from the result of `encode_audio`."""
        device = next(self.module.connector.parameters()).device
        if self._words is None:
            embeddings: list[Tensor] = self.module.connector([states.to(device) for states in encoder_states])
            return embeddings
        split = [split_rows(states) for states in encoder_states]
        embeddings = self.module.connector([states.to(device) for states, _ in split])
        words = [self.embed(torch.tensor(self._words.shown_ids(stored))).float() for _, stored in split]
        return [torch.cat([rows, shown]) for rows, shown in zip(embeddings, words, strict=True)]

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings, `(seq, dim)`."""
        table = self.module.decoder.embed_tokens
        embedded: Tensor = table(ids.to(table.weight.device))
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Hidden states of the decoder, `(seq, dim)`; see `AudioLM`."""
        if attention.uses_eager_attention():
            from earwise.models.decoders import transformers_decoder  # takes seconds, for checks only

            return transformers_decoder.decode_eagerly(self.module.decoder, embeddings)
        hidden: Tensor = self.module.decoder(embeddings, positions, attend)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary, `(seq, vocab)`."""
        logits: Tensor = self.module.head(hidden)
        return logits

    def save(self, folder: Path) -> None:
        """Write what training changed: the connector, LoRA, and encoder and decoder weights that were trained in full.

        LoRA on weights that were also trained in full is merged into them. A marker file records the base weights,
        trimming and the connector, which `load` reads.

        Raises:
            ModelError: if the decoder holds packed weights alone.
        """
        if compute.is_packed(self.module):
            raise ModelError(f"{self.name} was packed for answering, its weights are gone; load it again to save it")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: value.detach().contiguous()
            for name, value in self.module.state_dict().items()
            if name.startswith(STORED_PREFIXES)
        }
        trained = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        full_weights = self.full_weights | {
            name for name in trained if ".lora_" not in name and not name.startswith(STORED_PREFIXES)
        }
        merged_lora = {name: value.float() for name, value in self.merged_lora.items()}
        tensors |= {
            name: value
            for name, value in lora.concatenate_ranks(merged_lora, lora.collect(self.module)).items()
            if f"{name.rpartition('.lora_')[0]}.weight" not in full_weights
        }
        if full_weights:
            merged = checkpoint.merged_state_dict(self.module)
            tensors |= {name: merged[name].float() for name in full_weights}
        save_file(tensors, folder / "trained.safetensors")
        marker = {
            "family": "embedded",
            "base": base_weights.BASE,
            "trim": self.trims_padding,
            "connector": self.connector_spec.stored_fields(),
        }
        (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n")


def load(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool | None = None,
    answers_in: str | None = None,
) -> Embedded:  # fmt: skip
    """Load the model as shipped, or with the trained part in a folder.

    Args:
        weights: Folder with `trained.safetensors`; None is that of the package.
        device: Device of the model.
        dtype: Dtype of encoder and decoder; the connector stays in float32.
        trim: True encodes real frames only, False pads clips; None is as the checkpoint was trained. Another value
            than that is for measurements.
        answers_in: See `models.base.load`.
    Raises:
        ModelError: if there is no trained part, or it does not fit the base weights.
    """
    folder = weights or preload.ASSETS
    trimmed = bool(_read_marker(folder).get("trim", True)) if trim is None else trim
    exact = dtype == torch.float32
    return _build(
        preload.load_weights(folder, merge=exact, answers_in=answers_in if exact and device == "cpu" else None),
        "embedded",
        device,
        dtype,
        trimmed,
        connector_spec=read_connector_spec(folder),
    )


def load_aligned(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool | None = None
) -> Embedded:
    """Load the shipped model as it was before its second stage; the arguments are those of `load`.

    It recognises sounds, but has not been trained on options and hardly on the answer format, which makes it a starting
    point for reinforcement learning.
    """
    if weights is not None:
        raise ModelError("embedded-aligned takes no weights; name embedded to load a trained part")
    trimmed = bool(_read_marker(preload.ASSETS).get("trim", True)) if trim is None else trim
    return _build(
        preload.load_weights(preload.ASSETS, aligned=True, merge=dtype == torch.float32),
        "embedded-aligned",
        device,
        dtype,
        trimmed,
    )


def load_untrained(
    *, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32, trim: bool = False,
    connector_spec: ConnectorSpec | None = None, pretrained_decoder: bool = True,
) -> Embedded:  # fmt: skip
    """The base weights with an untrained connector, which recipe `embedded` starts from.

    Args:
        device: Device of the model.
        seed: Seed of the random weights.
        dtype: Dtype of encoder and decoder; the connector stays in float32.
        trim: True encodes real frames only, False pads clips to 30 s, as in Whisper's training.
        connector_spec: Which connector to build; None is the kind that ships.
        pretrained_decoder: False initialises the decoder at random, as transformers does.
    """
    weights = preload.load_weights(None)
    if connector_spec is not None or not pretrained_decoder:
        choices = f"{connector_spec or ConnectorSpec()}{'' if pretrained_decoder else '-random'}-{seed}"
        weights = replace(weights, revision=f"{weights.revision}-{choices}")
    return _build(weights, "embedded-blank", device, dtype, trim, seed, connector_spec, pretrained_decoder)


def load_blank(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool = False,
    connector: Mapping[str, Any] | None = None, decoder_init: str = "pretrained", seed: int = 0,
) -> Embedded:  # fmt: skip
    """`load_untrained` with the arguments of a recipe's `model` section.

    Args:
        weights: Must be None.
        device: Device of the model.
        dtype: Dtype of encoder and decoder.
        trim: See `load_untrained`.
        connector: Fields of a `ConnectorSpec`; None is the kind that ships.
        decoder_init: "pretrained", or "random" for random weights.
        seed: Seed of the random weights.
    Raises:
        ModelError: if weights are given, or the connector is unknown.
    """
    if weights is not None:
        raise ModelError("embedded-blank takes no weights; name embedded to load a trained part")
    connector_spec = parse_connector_spec(connector) if connector is not None else None
    return load_untrained(
        device=device,
        seed=seed,
        dtype=dtype,
        trim=trim,
        connector_spec=connector_spec,
        pretrained_decoder=decoder_init == "pretrained",
    )


def read_connector_spec(folder: Path) -> ConnectorSpec:
    """The connector that a checkpoint was trained with.

    Raises:
        ModelError: if this version does not know it.
    """
    return parse_connector_spec(_read_marker(folder).get("connector"))


def _read_marker(folder: Path) -> dict[str, Any]:
    """The marker file of a checkpoint; empty if there is none, as for the shipped checkpoint (trimmed clips)."""
    path = folder / MARKER
    marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return marker


def _build(
    weights: preload.EmbeddedWeights, name: str, device: str, dtype: torch.dtype, trim: bool, seed: int = 0,
    connector_spec: ConnectorSpec | None = None, pretrained_decoder: bool = True,
) -> Embedded:  # fmt: skip
    """Build the model from its weights.

    Args:
        weights: Weights of all parts.
        name: Name of the model.
        device: Device of the model.
        dtype: Dtype of encoder and decoder.
        trim: True encodes real frames only.
        seed: Seed of weights that are random.
        connector_spec: Which connector to build; None is the kind that ships.
        pretrained_decoder: False initialises the decoder at random.
    Raises:
        ModelError: if the weights do not fit the connector.
    """
    base = base_weights.base_folder()
    sizes = json.loads((base / "encoder.json").read_text())
    config = LlamaSizes(**json.loads((base / "decoder.json").read_text()))
    with torch.device("meta"):
        encoder, decoder = whisper.WhisperEncoder(sizes), LlamaDecoder(config)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    connector = build_connector(
        connector_spec or ConnectorSpec(), sizes["encoder_layers"] + 1, sizes["d_model"], config.hidden_size
    )
    if not pretrained_decoder:
        decoder_weights = random_decoder_weights(config)
        full_weights = frozenset(f"decoder.{name}" for name in decoder_weights)
        weights = replace(weights, decoder=decoder_weights, full_weights=full_weights)
    torch.set_rng_state(generator_state)
    for layer_name, layer in weights.packed.items():
        decoder.set_submodule(layer_name, layer)
    encoder.load_state_dict(weights.encoder, assign=True)
    decoder.load_state_dict(weights.decoder, assign=True)
    words = connector_spec.words if connector_spec else None
    gate = nn.Linear(2 * (sizes["encoder_layers"] + 1) * sizes["d_model"], words.gate) if words and words.gate else None
    if weights.connector:
        try:
            connector.load_state_dict(weights.connector)
            if gate is not None:
                gate.load_state_dict(weights.speech_gate)
        except RuntimeError as error:
            raise ModelError(
                f"trained part does not fit this version of the embedded model: {str(error).splitlines()[-1].strip()}"
            ) from error
    for part in (encoder, decoder):  # parameters only: rotary frequencies, a buffer, stay exact
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)
    module = EmbeddedModule(encoder, connector, decoder, gate).to(device).eval().requires_grad_(False)
    if weights.plan is not None:
        compute.mark_packed(module, weights.plan, encoder=("encoder.",))
    merged_lora = weights.merged_lora
    if dtype != torch.float32:
        merged_lora = {}
        lora_beside.attach(module, {name: value.float() for name, value in weights.merged_lora.items()})
    tokenizer = checkpoint.read_tokenizer(base, PLACEHOLDER)
    return Embedded(
        module, tokenizer, name=name, revision=weights.revision, merged_lora=merged_lora, trim=trim,
        full_weights=weights.full_weights, connector_spec=connector_spec,
    )  # fmt: skip
