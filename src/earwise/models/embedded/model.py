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
from earwise.models.embedded.connector import STATE_MS, Choice, Connector, chosen, make
from earwise.models.embedded.connector import SUMMARY as SUMMARY
from earwise.models.parts import attention, lora, whisper
from earwise.prompts import EMBEDDED
from earwise.types import Waveform

POOL = Choice().token_ms // STATE_MS  # encoder states per frame token of the shipped connector
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
        inherited: Mapping[str, Tensor], trim: bool, whole: frozenset[str] = frozenset(), choice: Choice | None = None,
    ) -> None:  # fmt: skip
        self.module = module
        self.name = name
        self.revision = revision
        self.inherited = inherited
        """LoRA matrices already merged into the weights; written out again by `save`, beside those trained since."""
        self.whole = whole
        """Weights of encoder and decoder that earlier stages trained in full, or that were drawn at random; written
        out again by `save`."""
        self.choice = choice or Choice()
        """Which connector `module` has."""
        self.spec = AudioSpec(sample_rate=16000, max_s=30.0, tokens_per_s=1000 / self.choice.token_ms)
        self.template = EMBEDDED
        self.groups = {"encoder": ("encoder.",), "connector": ("connector.",), "decoder": ("decoder.", "head.")}
        self.trims = trim
        self.masks = False
        self._tokenizer = tokenizer
        self.placeholder_id = tokenizer.token_to_id(PLACEHOLDER)
        self.eos_ids = (tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>"))
        self._extractor = WhisperFeatureExtractor(feature_size=module.encoder.num_mel_bins, sampling_rate=16000)

    @property
    def _connector(self) -> Connector:
        connector: Any = self.module.connector
        return connector

    def tokenize(self, text: str) -> list[int]:
        """Token ids of text; nothing is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

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
        window_s = None if self.trims else self.spec.max_s
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

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.Attend) -> Tensor:
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
        whole = self.whole | {name for name in trained if ".lora_" not in name and not name.startswith("connector.")}
        state |= {
            name: value
            for name, value in lora.stacked(self.inherited, lora.collect(self.module)).items()
            if f"{name.rpartition('.lora_')[0]}.weight" not in whole
        }
        if whole:
            merged = checkpoint.merged_state(self.module)
            state |= {name: merged[name].float() for name in whole}
        save_file(state, folder / "trained.safetensors")
        marks = {"family": "embedded", "base": base_weights.BASE, "trim": self.trims, "connector": asdict(self.choice)}
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
    return _build(preload.take(folder), "embedded", device, dtype, trimmed, choice=choice_of(folder))


def load_aligned(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool | None = None
) -> Embedded:
    """The shipped model as it was before it was tuned on questions: it recognises, but has seen no options and hardly
    the answer format, which is where reinforcement learning starts. See `load`."""
    if weights is not None:
        raise ModelError("embedded-aligned takes no weights; name embedded for a trained part")
    trimmed = bool(_marks(preload.ASSETS).get("trim", True)) if trim is None else trim
    return _build(preload.take(preload.ASSETS, aligned=True), "embedded-aligned", device, dtype, trimmed)


def blank(
    *, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32, trim: bool = False,
    choice: Choice | None = None, read_before: bool = True,
) -> Embedded:  # fmt: skip
    """Base weights with an untrained connector: where `recipes/embedded.yaml` starts.

    Args:
        device: Where to put it.
        seed: Of what is drawn at random.
        dtype: Of encoder and decoder.
        trim: Hear only frames that exist; else padded, as Whisper was trained.
        choice: Of the connector; None is the shipped one's kind.
        read_before: False draws the decoder at random, as transformers starts one.
    """
    weights = preload.take(None)
    if choice is not None or not read_before:
        drawn = f"{choice or Choice()}{'' if read_before else '-random'}-{seed}"
        weights = replace(weights, revision=f"{weights.revision}-{drawn}")
    return _build(weights, "embedded-blank", device, dtype, trim, seed, choice, read_before)


def load_blank(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trim: bool = False,
    connector: Mapping[str, Any] | None = None, decoder_start: str = "pretrained", seed: int = 0,
) -> Embedded:  # fmt: skip
    """`blank` for the table of models, by the words of a recipe (`config.ModelConfig`)."""
    if weights is not None:
        raise ModelError("embedded-blank takes no weights; name embedded for a trained part")
    choice = chosen(connector) if connector is not None else None
    return blank(
        device=device, seed=seed, dtype=dtype, trim=trim, choice=choice, read_before=decoder_start == "pretrained"
    )


def choice_of(folder: Path) -> Choice:
    """The connector that a checkpoint was trained with.

    Raises:
        ModelError: if this version does not know it.
    """
    return chosen(_marks(folder).get("connector"))


def _marks(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; those that say nothing, as the shipped one, were trained trimmed and with the
    shipped connector."""
    marker = folder / MARKER
    marks: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    return marks


def _build(
    weights: preload.Weights, name: str, device: str, dtype: torch.dtype, trim: bool, seed: int = 0,
    choice: Choice | None = None, read_before: bool = True,
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
    connector = make(choice or Choice(), sizes["encoder_layers"] + 1, sizes["d_model"], config.hidden_size)
    if not read_before:
        drawn = LlamaModel(config).state_dict()
        weights = replace(weights, decoder=drawn, whole=frozenset(f"decoder.{name}" for name in drawn))
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
    tokenizer = checkpoint.tokenizer(base, PLACEHOLDER)
    return Embedded(
        module, tokenizer, name=name, revision=weights.revision, inherited=weights.inherited, trim=trim,
        whole=weights.whole, choice=choice,
    )  # fmt: skip


def _llama(sizes: dict[str, Any]) -> dict[str, Any]:
    theta = sizes.pop("rope_theta")
    return sizes | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "tie_word_embeddings": True}
