"""SALMONN (7B, 13B): two encoders, Whisper-large-v2 for speech and BEATs for other sounds, a window-level Q-Former that
reads both into 88 tokens, and Vicuna with LoRA.

Composed of transformers' Whisper encoder, Q-Former and Llama and of our BEATs (`parts/beats.py`). `convert/salmonn.py`
makes a folder for `load` out of the released parts; it merges LoRA into Vicuna and also keeps the LoRA matrices, so
that the released form can be written again.

Whisper encodes every clip padded to its 30 s window, as it was trained here; BEATs encodes the clip without padding (at
least 1 s). Nothing is masked, so a clip of one second also gives 88 tokens, most of them about silence.

Source: SALMONN (arXiv:2310.13289), section 3; released code bytedance/SALMONN. Deviations: 1. the padding of a longer
clip in the batch never changes a clip's states; 2. a clip over 30 s is an error, never cut silently; 3. no dropout in
training; 4. the row that `[PAD]` adds to Vicuna's embeddings is left out: packed sequences need no padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earwise.audio import LONG_AUDIO_REMEDY, AudioSpec
from earwise.errors import AudioError, ModelError
from earwise.files import write_json
from earwise.models import checkpoint, registry
from earwise.models.base import EmptyModel
from earwise.models.decoders import transformers_decoder
from earwise.models.parts import attention, lora
from earwise.models.parts.beats import Beats, BeatsConfig, fbank, token_count
from earwise.models.parts.qformer import WindowQFormer
from earwise.models.tokenizer import TextTokenizer, check_special_tokens, check_vocabulary
from earwise.prompts import SALMONN
from earwise.types import Waveform

FAMILY = registry.get("salmonn")
LABEL = "a converted SALMONN model"
SAMPLE_RATE = 16000
STATES_PER_S = 50
"""States per second of both encoders."""
MIN_SAMPLES = SAMPLE_RATE
"""Shorter clips are padded with silence to this length, 1 s."""
BEGIN_TOKEN, END_TOKEN = "<s>", "</s>"
PLACEHOLDER = "<unk>"
"""Vicuna's unknown token, which no text gives: it spells unknown characters in bytes."""
PARAMETER_PREFIXES = {
    "encoder": ("speech_encoder.", "beats."),
    "connector": ("ln_speech.", "ln_audio.", "qformer.", "proj."),
    "decoder": ("llama.",),
}


@dataclass(frozen=True, slots=True)
class SalmonnConfig:
    """Sizes of the parts, as config.json contains them.

    Attributes:
        whisper: Arguments of transformers' `WhisperConfig`.
        llama: Arguments of transformers' `LlamaConfig`.
        beats: Sizes of BEATs.
        window: Encoder states that one query reads: 17 states of 20 ms as released (0.333333 s, rounded).
        qformer: Sizes of `WindowQFormer` that differ from the released ones.
    """

    whisper: dict[str, int]
    llama: dict[str, Any]
    beats: BeatsConfig = field(default_factory=BeatsConfig)
    window: int = 17
    qformer: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SalmonnConfig":
        """The sizes from the content of config.json; `KeyError` or `TypeError` if something is missing or unknown."""
        parts = {name: content[name] for name in ("whisper", "llama", "window", "qformer")}
        return cls(beats=BeatsConfig(**content["beats"]), **parts)


WHISPER_LARGE_V2 = {
    "num_mel_bins": 80, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "d_model": 1280,
    "max_source_positions": 1500,
}  # fmt: skip
_VICUNA = {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_VICUNA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_VICUNA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
RELEASED = {
    "7B": SalmonnConfig(WHISPER_LARGE_V2, _VICUNA | _VICUNA_7B),
    "13B": SalmonnConfig(WHISPER_LARGE_V2, _VICUNA | _VICUNA_13B),
}
"""Sizes of the two released models."""


NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0}
"""Fields of transformers' `WhisperConfig` that switch off what is random in training."""


class SalmonnModule(nn.Module):
    """All parameters; the names of the submodules are `PARAMETER_PREFIXES`."""

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__()
        llama = LlamaConfig(**config.llama)
        llama._attn_implementation = transformers_decoder.IMPLEMENTATION
        speech_dim, audio_dim = config.whisper["d_model"], config.beats.dim
        self.config = config
        self.speech_encoder = WhisperEncoder(WhisperConfig(**config.whisper, **NO_DROPOUT))
        self.beats = Beats(config.beats)
        self.ln_speech, self.ln_audio = nn.LayerNorm(speech_dim), nn.LayerNorm(audio_dim)
        self.qformer = WindowQFormer(speech_dim + audio_dim, config.window, **config.qformer)
        self.proj = nn.Linear(self.qformer.query.shape[-1], llama.hidden_size)
        self.llama = LlamaForCausalLM(llama)

    def connect(self, speech: Tensor, audio: Sequence[Tensor]) -> Tensor:
        """Embeddings for the decoder, `(clips, audio_seq, dim)`.

        Args:
            speech: Whisper's states `(clips, states, dim)`.
            audio: BEATs' states of each clip, `(tokens, dim)`, at most as many as Whisper's; zeros follow them.
        """
        normed = [self.ln_audio(clip) for clip in audio]
        padded = [nn.functional.pad(clip, (0, 0, 0, speech.shape[1] - len(clip))) for clip in normed]
        states = torch.cat([self.ln_speech(speech), torch.stack(padded)], -1)
        embeddings: Tensor = self.proj(self.qformer(states))
        return embeddings


class Salmonn:
    """`AudioLM` over a `SalmonnModule`; made by `load` or `from_parts`, see `models.base` for the contract."""

    def __init__(
        self,
        module: SalmonnModule,
        tokenizer: Tokenizer,
        *,
        name: str,
        revision: str,
        merged_lora: Mapping[str, Tensor],
    ) -> None:
        self.module = module
        self.name = name
        self.revision = revision
        self.merged_lora = merged_lora
        """LoRA matrices already merged into the decoder, by the name of their weight; `save` writes them out again."""
        self.trims_padding = False
        self.masks_padding = False
        self._states: int = module.config.whisper["max_source_positions"]
        self._tokens = module.qformer.window_count(self._states) * module.qformer.query.shape[1]
        window_s = self._states // STATES_PER_S
        self.spec = AudioSpec(
            sample_rate=SAMPLE_RATE, max_s=float(window_s), tokens_per_s=round(self._tokens / window_s, 2)
        )
        self.template = SALMONN
        self.parameter_prefixes = PARAMETER_PREFIXES
        token_ids = check_special_tokens(
            tokenizer, (BEGIN_TOKEN, END_TOKEN, PLACEHOLDER), FAMILY.name, "give the tokenizer of Vicuna"
        )
        self.placeholder_id: int = token_ids[PLACEHOLDER]
        self.eos_ids: tuple[int, ...] = (token_ids[END_TOKEN],)
        self.tokenizer = TextTokenizer(tokenizer, self.placeholder_id, self.eos_ids, self.template, opening=BEGIN_TOKEN)
        self._extractor = WhisperFeatureExtractor(
            feature_size=module.config.whisper["num_mel_bins"], sampling_rate=SAMPLE_RATE, chunk_length=window_s
        )

    def audio_tokens(self, samples: int) -> int:
        """The same number for every clip: 88 as released.

        Raises:
            AudioError: if the clip is empty, or longer than the window.
        """
        if samples < 1:
            raise AudioError(f"clip of {samples} samples is empty; {self.name} needs at least one")
        if samples > self._states * SAMPLE_RATE // STATES_PER_S:
            raise AudioError(
                f"clip of {samples / SAMPLE_RATE:.2f} s is longer than the {self.spec.max_s:.0f} s that {self.name} "
                f"takes; {LONG_AUDIO_REMEDY}"
            )
        return self._tokens

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """States of both encoders in one row per clip: those of Whisper's whole window, then those of BEATs for the
        clip itself, flattened."""
        for waveform in waveforms:
            self.audio_tokens(len(waveform))
        if not waveforms:
            return []
        padded = [
            np.pad(np.asarray(waveform, np.float32), (0, max(0, MIN_SAMPLES - len(waveform)))) for waveform in waveforms
        ]
        pairs = zip(self.speech_states(padded), self.audio_states(padded), strict=True)
        return [torch.cat([speech.flatten(), audio.flatten().to(speech)]) for speech, audio in pairs]

    def speech_states(self, waveforms: Sequence[Waveform]) -> Tensor:
        """Whisper's states `(clips, states, dim)` of the padded window."""
        encoder = self.module.speech_encoder
        mels = self._extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        states: Tensor = encoder(mels.to(encoder.conv1.weight)).last_hidden_state
        return states

    def audio_states(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """BEATs' states `(tokens, dim)` of each clip, without padding."""
        encoder = self.module.beats
        features = [fbank(waveform) for waveform in waveforms]
        counts = [token_count(len(frames)) for frames in features]
        batch = nn.utils.rnn.pad_sequence(features, batch_first=True).to(encoder.widen.weight)
        index = torch.arange(token_count(batch.shape[1]), device=batch.device)
        is_audio = index < torch.tensor(counts, device=batch.device)[:, None]
        states = encoder(batch, None if bool(is_audio.all()) else is_audio)
        return [clip[:count] for clip, count in zip(states, counts, strict=True)]

    def project_audio(self, encoder_states: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        if not encoder_states:
            return []
        speech_dim, audio_dim = self.module.config.whisper["d_model"], self.module.config.beats.dim
        rows = [clip.to(self.module.ln_speech.weight) for clip in encoder_states]
        size = self._states * speech_dim
        speech = torch.stack([row[:size].view(self._states, speech_dim) for row in rows])
        return list(self.module.connect(speech, [row[size:].view(-1, audio_dim) for row in rows]))

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        table = self.module.llama.model.embed_tokens
        embedded: Tensor = table(ids.to(table.weight.device))
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`."""
        return transformers_decoder.decode_packed(self.module.llama.model, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        scores: Tensor = self.module.llama.lm_head(hidden)
        return scores

    def save(self, folder: Path) -> None:
        """Write a folder for `load`: all weights with LoRA merged in, LoRA by itself, sizes, tokenizer.

        Without new LoRA `load` gives the same weights bit for bit; with it the merged weights, each rounded once.
        """
        write_folder(
            folder, self.module.config, checkpoint.merged_state_dict(self.module), self.tokenizer.backend,
            lora.concatenate_ranks(self.merged_lora, lora.collect(self.module)),
        )  # fmt: skip


def write_folder(
    folder: Path, config: SalmonnConfig, tensors: Mapping[str, Tensor], tokenizer: Tokenizer,
    merged_lora: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Write what `load` reads.

    Args:
        folder: Folder to write.
        config: Sizes of the parts.
        tensors: All weights.
        tokenizer: Vicuna's tokenizer.
        merged_lora: LoRA matrices that the decoder's weights in `tensors` contain already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("model", tensors), ("lora", merged_lora)):
        contiguous = {key: value.contiguous() for key, value in content.items()}
        save_file(contiguous, folder / f"{name}.safetensors", {"format": "pt"})
    write_json(folder / "config.json", {"model_type": "salmonn", **asdict(config)})
    tokenizer.save(str(folder / "tokenizer.json"))
    checkpoint.write_marker(folder, {"family": FAMILY.name})


def empty_module(config: SalmonnConfig) -> SalmonnModule:
    """The module of these sizes without weights: on the meta device, except for the rotary frequencies."""
    with torch.device("meta"):
        module = SalmonnModule(config)
    rotary = module.llama.model.rotary_emb
    module.llama.model.rotary_emb = type(rotary)(config=module.llama.config)
    return module


def build_empty(content: Mapping[str, Any]) -> EmptyModel:
    """The model without weights, on the meta device, from the content of a checkpoint's config.json."""
    published = FAMILY.sizes[0]
    spec = AudioSpec(published.sample_rate, published.max_audio_s, published.audio_tokens_per_s)
    return EmptyModel(empty_module(SalmonnConfig.from_json(content)), PARAMETER_PREFIXES, spec)


def from_parts(
    module: SalmonnModule, tokenizer: Tokenizer, *, name: str = FAMILY.name, revision: str = "unsaved",
    merged_lora: Mapping[str, Tensor] | None = None,
) -> Salmonn:  # fmt: skip
    """Put a model together; the module's parameters are frozen in place.

    Args:
        module: Module of any sizes with a window of whole seconds.
        tokenizer: Has Llama's `<s>`, `</s>` and `<unk>`.
        name: Name in result rows.
        revision: Hash of the weights.
        merged_lora: LoRA matrices that are merged into the decoder already.
    Raises:
        ModelError: if the parts do not fit each other.
    """
    check_vocabulary(tokenizer, module.llama.config.vocab_size, name)
    states = module.config.whisper["max_source_positions"]
    if states % STATES_PER_S:
        raise ModelError(f"{name}: a window of {states} states is no whole second; give a multiple of {STATES_PER_S}")
    return Salmonn(
        module.eval().requires_grad_(False), tokenizer, name=name, revision=revision, merged_lora=merged_lora or {}
    )


def load(weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Salmonn:
    """Load SALMONN from a folder that `python -m earwise.models.convert.salmonn` or `save` wrote.

    Args:
        weights: The folder.
        device: Device to put the model on.
        dtype: Dtype of all weights; None keeps the stored one of each part.
    Raises:
        ModelError: if there is no folder, or tensors are missing, unexpected or of another shape.
    """
    if weights is None:
        raise ModelError(
            "salmonn: no weights given; make a folder of the released parts with "
            "`python -m earwise.models.convert.salmonn --help`, then name it as the model (--model FOLDER)"
        )
    content = checkpoint.read_config(weights, FAMILY.model_types, LABEL)
    files = checkpoint.safetensors_files(weights)
    try:
        module = empty_module(SalmonnConfig.from_json(content))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{weights / 'config.json'}: not {LABEL}'s ({error!r}); convert it again") from error
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise ModelError(f"{file}: not a whole safetensors file ({error}); convert or copy it again") from error
    merged_lora = {name: tensors.pop(name) for name in list(tensors) if ".lora_" in name}
    fill_module(module, tensors, weights)
    for parameter in module.parameters():  # by parameter: rotary frequencies, a buffer, stay exact
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    return from_parts(
        module.to(device), checkpoint.read_tokenizer(weights, PLACEHOLDER), revision=checkpoint.weights_digest(files),
        merged_lora=merged_lora,
    )  # fmt: skip


def fill_module(module: SalmonnModule, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give an `empty_module` its weights, without a copy.

    Raises:
        ModelError: naming `source` and the tensors that are missing, unexpected or of another shape.
    """
    check_same_tensors(tensors, module.state_dict(), source, LABEL)
    module.load_state_dict(tensors, assign=True)


def check_same_tensors(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor], source: Path, label: str) -> None:
    """Refuse tensors that are not exactly the needed ones, by name and shape; see `checkpoint.check_tensors`."""
    mismatches = checkpoint.shape_mismatches(tensors, needed)
    checkpoint.check_tensors(source, needed.keys() - tensors.keys(), tensors.keys() - needed.keys(), mismatches, label)
