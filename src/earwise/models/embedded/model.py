"""The embedded model: Whisper base's encoder, a learned connector, SmolLM2-135M-Instruct's decoder. Runs on a laptop,
default everywhere.

Qwen2-Audio's architecture at 1/50 of its size, composed of transformers' own encoder and Llama classes. The base
weights come from `fetch`; what we trained (connector and LoRA, `recipes/embedded.yaml`) ships in the package: alignment
on open recognition, then questions with options. `embedded-aligned` is the same file without the second stage's ranks.

Whisper's encoder does not mask, so what it hears depends on whether a clip is padded to its 30 s window (as Whisper was
trained) or trimmed to the frames that exist. That is chosen where training starts (`model.trim` in the recipe; padded
if nothing is said), kept in the checkpoint, and never changed by loading. The shipped model chose to trim; what that
changes is measured by `benchmarks/trimming.py`.

Two parts may be chosen where training starts from `embedded-blank`: another connector (`embedded_connector.py`) and a
decoder that never read a text. Both stay with the checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, WhisperFeatureExtractor
from transformers.models.llama.modeling_llama import LlamaModel

from earwise.audio import AudioSpec, num_samples, seconds
from earwise.errors import AudioError, ModelError
from earwise.models import checkpoint
from earwise.models.detect import MARKER
from earwise.models.embedded import base_weights, preload
from earwise.models.embedded.connector import STATE_MS, ConnectorSpec, Connector, build_connector, parse_connector_spec
from earwise.models.embedded.connector import SUMMARY as SUMMARY
from earwise.models.parts import attention, lora, whisper
from earwise.models.tokenizer import TextTokenizer
from earwise.prompts import EMBEDDED
from earwise.types import Waveform

POOL = ConnectorSpec().token_ms // STATE_MS  # encoder states per frame token of the shipped connector
PLACEHOLDER = "<file_sep>"  # a SmolLM2 code token that no conversation holds; its embedding is always replaced


class EmbeddedModule(nn.Module):
    """The three parts under one roof, so that names in checkpoints read `encoder.`, `connector.`, `decoder.`."""

    def __init__(self, encoder: nn.Module, connector: nn.Module, decoder: LlamaModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self.decoder = decoder
        words, width = decoder.embed_tokens.weight.shape
        self.head = nn.Linear(width, words, bias=False, device="meta")
        self.head.weight = decoder.embed_tokens.weight  # tied


class Embedded:
    """`AudioLM` for the embedded model; see `models.base` for the contract."""

    def __init__(
        self, module: EmbeddedModule, tokenizer: Tokenizer, *, name: str, revision: str,
        merged_lora: Mapping[str, Tensor], trim: bool, full_weights: frozenset[str] = frozenset(), connector_spec: ConnectorSpec | None = None,
    ) -> None:  # fmt: skip
        self.module = module
        self.name = name
        self.revision = revision
        self.merged_lora = merged_lora
        """LoRA matrices already merged into the weights; written out again by `save`, beside those trained since."""
        self.full_weights = full_weights
        """Weights of encoder and decoder that earlier stages trained in full, or that were drawn at random; written
        out again by `save`."""
        self.connector_spec = connector_spec or ConnectorSpec()
        """Which connector `module` has."""
        self.spec = AudioSpec(sample_rate=16000, max_s=30.0, tokens_per_s=1000 / self.connector_spec.token_ms)
        self.template = EMBEDDED
        self.parameter_prefixes = {"encoder": ("encoder.",), "connector": ("connector.",), "decoder": ("decoder.", "head.")}
        self.trims_padding = trim
        self.masks_padding = False
        self.placeholder_id = tokenizer.token_to_id(PLACEHOLDER)
        self.eos_ids = (tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>"))
        self.tokenizer = TextTokenizer(tokenizer, self.placeholder_id, self.eos_ids)
        self._extractor = WhisperFeatureExtractor(feature_size=module.encoder.num_mel_bins, sampling_rate=16000)

    @property
    def _connector(self) -> Connector:
        connector: Any = self.module.connector
        return connector

    def audio_tokens(self, samples: int) -> int:
        """By the connector; the shipped one's are summary tokens and leads, and one per started 320 ms.

        Raises:
            AudioError: if the clip is empty or longer than 30 s.
        """
        if not 0 < samples <= num_samples(self.spec.max_s, self.spec.sample_rate):
            length_s = seconds(samples, self.spec.sample_rate)
            raise AudioError(
                f"clip lasts {length_s:.2f} s, {self.name} hears up to {self.spec.max_s:.0f} s; "
                "cut it, or choose long_audio: truncate or chunk"
            )
        return self._connector.tokens(whisper.states(samples))

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """What the connector reads of each clip; of the shipped one `(layers, 2 + windows, dim)`, see
        `projector.pool_states`."""
        if not waveforms:
            return []
        window_s = None if self.trims_padding else self.spec.max_s
        mels = [whisper.log_mel(wave, self._extractor, window_s=window_s) for wave in waveforms]
        heard = whisper.layer_states(self.module.encoder, mels)
        real = [whisper.states(len(wave)) for wave in waveforms]
        return [self._connector.kept(layers[:, :n].float()) for layers, n in zip(heard, real, strict=True)]

    def project_audio(self, heard: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        device = next(self.module.connector.parameters()).device
        connected: list[Tensor] = self.module.connector([clip.to(device) for clip in heard])
        return connected

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        table = self.module.decoder.embed_tokens
        embedded: Tensor = table(ids.to(table.weight.device))
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`."""
        return attention.decode_packed(self.module.decoder, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary; the head is the embedding table."""
        scores: Tensor = self.module.head(hidden)
        return scores

    def save(self, folder: Path) -> None:
        """Write what training changed, with what `load` checks: connector, LoRA, and weights of encoder and decoder
        that were trained in full (LoRA upon them merged in)."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            f"connector.{name}": value.detach().contiguous()
            for name, value in self.module.connector.state_dict().items()
        }
        trained = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        full_weights = self.full_weights | {name for name in trained if ".lora_" not in name and not name.startswith("connector.")}
        state |= {
            name: value
            for name, value in lora.concatenate_ranks(self.merged_lora, lora.collect(self.module)).items()
            if f"{name.rpartition('.lora_')[0]}.weight" not in full_weights
        }
        if full_weights:
            merged = checkpoint.merged_state_dict(self.module)
            state |= {name: merged[name].float() for name in full_weights}
        save_file(state, folder / "trained.safetensors")
        marks = {"family": "embedded", "base": base_weights.BASE, "trim": self.trims_padding, "connector": asdict(self.connector_spec)}
        (folder / MARKER).write_text(json.dumps(marks, indent=1) + "\n")


def load(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool | None = None
) -> Embedded:
    """The model as shipped, or with the trained part found in `weights`.

    Args:
        weights: Folder with `trained.safetensors`; None is the package's own.
        device: Where to put it.
        dtype: Of encoder and decoder; the connector stays in float32.
        trim: Hear only frames that exist; None is as the checkpoint was trained, anything else is for measuring.
    Raises:
        ModelError: if there is no trained part, or it does not fit.
    """
    folder = weights or preload.ASSETS
    trimmed = bool(_marks(folder).get("trim", True)) if trim is None else trim
    return _build(preload.load_weights(folder), "embedded", device, dtype, trimmed, connector_spec=read_connector_spec(folder))


def load_aligned(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool | None = None
) -> Embedded:
    """The shipped model as it was before it was tuned on questions: it recognises, but has seen no options and hardly
    the answer format, which is where reinforcement learning starts. See `load`."""
    if weights is not None:
        raise ModelError("embedded-aligned takes no weights; name embedded for a trained part")
    trimmed = bool(_marks(preload.ASSETS).get("trim", True)) if trim is None else trim
    return _build(preload.load_weights(preload.ASSETS, aligned=True), "embedded-aligned", device, dtype, trimmed)


def load_untrained(
    *, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32, trim: bool = False,
    connector_spec: ConnectorSpec | None = None, pretrained_decoder: bool = True,
) -> Embedded:  # fmt: skip
    """Base weights with an untrained connector: where `recipes/embedded.yaml` starts.

    Args:
        device: Where to put it.
        seed: Of what is drawn at random.
        dtype: Of encoder and decoder.
        trim: Hear only frames that exist; else padded, as Whisper was trained.
        connector_spec: Of the connector; None is the shipped one's kind.
        read_before: False draws the decoder at random, as transformers starts one.
    """
    weights = preload.load_weights(None)
    if connector_spec is not None or not pretrained_decoder:
        drawn = f"{connector_spec or ConnectorSpec()}{'' if pretrained_decoder else '-random'}-{seed}"
        weights = replace(weights, revision=f"{weights.revision}-{drawn}")
    return _build(weights, "embedded-blank", device, dtype, trim, seed, connector_spec, pretrained_decoder)


def load_blank(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool = False,
    connector: Mapping[str, Any] | None = None, decoder_init: str = "pretrained", seed: int = 0,
) -> Embedded:  # fmt: skip
    """`blank` for the table of models, by the words of a recipe (`config.ModelConfig`)."""
    if weights is not None:
        raise ModelError("embedded-blank takes no weights; name embedded for a trained part")
    connector_spec = parse_connector_spec(connector) if connector is not None else None
    return load_untrained(
        device=device, seed=seed, dtype=dtype, trim=trim, connector_spec=connector_spec, pretrained_decoder=decoder_init == "pretrained"
    )


def read_connector_spec(folder: Path) -> ConnectorSpec:
    """The connector that a checkpoint was trained with.

    Raises:
        ModelError: if this version does not know it.
    """
    return parse_connector_spec(_marks(folder).get("connector"))


def _marks(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; those that say nothing, as the shipped one, were trained trimmed and with the
    shipped connector."""
    marker = folder / MARKER
    marks: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    return marks


def _build(
    weights: preload.EmbeddedWeights, name: str, device: str, dtype: torch.dtype, trim: bool, seed: int = 0,
    connector_spec: ConnectorSpec | None = None, pretrained_decoder: bool = True,
) -> Embedded:  # fmt: skip
    base = base_weights.base_folder()
    sizes = json.loads((base / "encoder.json").read_text())
    config = LlamaConfig(**_llama(json.loads((base / "decoder.json").read_text())))
    config._attn_implementation = attention.IMPLEMENTATION
    with torch.device("meta"):
        encoder, decoder = whisper.build_encoder(sizes), LlamaModel(config)
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    connector = build_connector(connector_spec or ConnectorSpec(), sizes["encoder_layers"] + 1, sizes["d_model"], config.hidden_size)
    if not pretrained_decoder:
        drawn = LlamaModel(config).state_dict()
        weights = replace(weights, decoder=drawn, full_weights=frozenset(f"decoder.{name}" for name in drawn))
    torch.set_rng_state(generator_state)
    encoder.load_state_dict(weights.encoder, assign=True)
    decoder.load_state_dict(weights.decoder, assign=True)
    if weights.connector:
        try:
            connector.load_state_dict(weights.connector)
        except RuntimeError as error:
            raise ModelError(
                f"trained part does not fit this version of the embedded model: {str(error).splitlines()[-1].strip()}"
            ) from error
    for part in (encoder, decoder):  # by parameter: rotary frequencies, a buffer, stay exact
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)
    module = EmbeddedModule(encoder, connector, decoder).to(device).eval().requires_grad_(False)
    tokenizer = checkpoint.read_tokenizer(base, PLACEHOLDER)
    return Embedded(
        module, tokenizer, name=name, revision=weights.revision, merged_lora=weights.merged_lora, trim=trim,
        full_weights=weights.full_weights, connector_spec=connector_spec,
    )  # fmt: skip


def _llama(sizes: dict[str, Any]) -> dict[str, Any]:
    theta = sizes.pop("rope_theta")
    return sizes | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "tie_word_embeddings": True}
