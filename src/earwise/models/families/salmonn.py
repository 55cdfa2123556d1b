"""SALMONN (7B, 13B): two ears, Whisper-large-v2's encoder for speech and BEATs for the rest, read by a window-level
Q-Former into 88 tokens, in front of Vicuna with LoRA.

Composed of transformers' Whisper encoder, Q-Former and Llama and of our BEATs (`parts/beats.py`). `convert_salmonn.py`
makes a folder for `load` out of the released parts; LoRA is merged into Vicuna there, and kept beside it so that the
released form can be written again.

Whisper hears every clip padded to its 30 s window, as it was trained here; BEATs hears the clip alone (at least 1 s);
nothing is masked, so a clip of one second also gives 88 tokens, most of them about silence.

Source: SALMONN (arXiv:2310.13289), section 3; papers/salmonn.md sections 1-3. Deviations: 1. a clip never hears the
padding of a longer one in its batch; 2. a clip over 30 s is an error, never cut in silence; 3. no dropout in training;
4. the row that `[PAD]` adds to Vicuna's embeddings is left out: packed sequences need no padding.
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
from transformers import LlamaConfig, LlamaForCausalLM, WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.errors import AudioError, ModelError
from earwise.files import write_json
from earwise.models import checkpoint
from earwise.models.parts import attention, lora, whisper
from earwise.models.parts.beats import Beats, BeatsConfig, fbank, token_count
from earwise.models.parts.qformer import WindowQFormer
from earwise.models.tokenizer import TextTokenizer
from earwise.prompts import SALMONN
from earwise.types import Waveform

SAMPLE_RATE = 16000
STATES_PER_S = 50  # of both encoders
SHORTEST_SAMPLES = SAMPLE_RATE  # shorter clips are followed by silence up to 1 s
WHAT = "a converted SALMONN model"
BEGIN, END, PLACEHOLDER = "<s>", "</s>", "<unk>"  # Vicuna's; no text gives <unk>: unknown signs are spelt in bytes
GROUPS = {
    "encoder": ("speech_encoder.", "beats."),
    "connector": ("ln_speech.", "ln_audio.", "qformer.", "proj."),
    "decoder": ("llama.",),
}


@dataclass(frozen=True, slots=True)
class SalmonnConfig:
    """Sizes of the parts, as they stand in config.json.

    Attributes:
        whisper: Arguments of transformers' `WhisperConfig`.
        llama: Arguments of transformers' `LlamaConfig`.
        beats: BEATs' sizes.
        window: Encoder states that one query reads: 17 of 20 ms as released (0.333333 s, rounded).
        qformer: Sizes of `WindowQFormer` that differ from the released ones.
    """

    whisper: dict[str, int]
    llama: dict[str, Any]
    beats: BeatsConfig = field(default_factory=BeatsConfig)
    window: int = 17
    qformer: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "SalmonnConfig":
        """From config.json; `KeyError` or `TypeError` if something is missing or unknown."""
        parts = {name: values[name] for name in ("whisper", "llama", "window", "qformer")}
        return cls(beats=BeatsConfig(**values["beats"]), **parts)


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


class SalmonnModule(nn.Module):
    """All parameters; the first names of each part are its group's prefixes."""

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__()
        llama = LlamaConfig(**config.llama)
        llama._attn_implementation = attention.IMPLEMENTATION
        heard = config.whisper["d_model"], config.beats.dim
        self.config = config
        self.speech_encoder = whisper.build_encoder(config.whisper)
        self.beats = Beats(config.beats)
        self.ln_speech, self.ln_audio = nn.LayerNorm(heard[0]), nn.LayerNorm(heard[1])
        self.qformer = WindowQFormer(sum(heard), config.window, **config.qformer)
        self.proj = nn.Linear(self.qformer.query.shape[-1], llama.hidden_size)
        self.llama = LlamaForCausalLM(llama)

    def join(self, speech: Tensor, audio: Sequence[Tensor]) -> Tensor:
        """Embeddings for the decoder, `(clips, audio_seq, dim)`.

        Args:
            speech: Whisper's states `(clips, states, dim)`.
            audio: BEATs' states of each clip, `(tokens, dim)`, at most as many as Whisper's; zeros follow them.
        """
        normed = [self.ln_audio(clip) for clip in audio]
        rows = [nn.functional.pad(clip, (0, 0, 0, speech.shape[1] - len(clip))) for clip in normed]
        joined: Tensor = self.proj(self.qformer(torch.cat([self.ln_speech(speech), torch.stack(rows)], -1)))
        return joined


class Salmonn:
    """`AudioLM` over a `SalmonnModule`; made by `load` or `from_parts`, see `models.base` for the contract."""

    def __init__(
        self, module: SalmonnModule, tokenizer: Tokenizer, *, name: str, revision: str, merged_lora: Mapping[str, Tensor]
    ) -> None:
        self.module = module
        self.name = name
        self.revision = revision
        self.merged_lora = merged_lora
        """LoRA matrices already merged into the decoder, by the name of their weight; `save` writes them out again."""
        self.trims = False
        self.masks = False
        self._states: int = module.config.whisper["max_source_positions"]
        self._tokens = module.qformer.windows(self._states) * module.qformer.query.shape[1]
        window_s = self._states // STATES_PER_S
        self.spec = AudioSpec(
            sample_rate=SAMPLE_RATE, max_s=float(window_s), tokens_per_s=round(self._tokens / window_s, 2)
        )
        self.template = SALMONN
        self.groups = GROUPS
        _, end, self.placeholder_id = (_id(tokenizer, mark) for mark in (BEGIN, END, PLACEHOLDER))
        self.eos_ids = (end,)
        self.tokenizer = TextTokenizer(tokenizer, self.placeholder_id, self.eos_ids, opening=BEGIN)
        self._extractor = WhisperFeatureExtractor(
            feature_size=module.config.whisper["num_mel_bins"], sampling_rate=SAMPLE_RATE, chunk_length=window_s
        )

    def audio_tokens(self, samples: int) -> int:
        """The same for every clip: 88 as released.

        Raises:
            AudioError: if the clip is empty, or longer than the window.
        """
        if samples < 1:
            raise AudioError(f"clip of {samples} samples is empty; {self.name} needs at least one")
        if samples > self._states * SAMPLE_RATE // STATES_PER_S:
            raise AudioError(
                f"clip of {samples / SAMPLE_RATE:.2f} s is longer than the {self.spec.max_s:.0f} s that {self.name} "
                "hears; cut it, or choose long_audio: truncate or chunk"
            )
        return self._tokens

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """Both encoders' states of each clip in one row: Whisper's whole window, then BEATs' real tokens, flattened."""
        for wave in waveforms:
            self.audio_tokens(len(wave))
        if not waveforms:
            return []
        some = [np.pad(np.asarray(wave, np.float32), (0, max(0, SHORTEST_SAMPLES - len(wave)))) for wave in waveforms]
        both = zip(self.speech_states(some), self.audio_states(some), strict=True)
        return [torch.cat([speech.flatten(), audio.flatten().to(speech)]) for speech, audio in both]

    def speech_states(self, waveforms: Sequence[Waveform]) -> Tensor:
        """Whisper's states `(clips, states, dim)` of the padded window."""
        encoder = self.module.speech_encoder
        mels = self._extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        states: Tensor = encoder(mels.to(encoder.conv1.weight)).last_hidden_state
        return states

    def audio_states(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """BEATs' states `(tokens, dim)` of each clip, heard alone."""
        ear = self.module.beats
        pictures = [fbank(wave) for wave in waveforms]
        counts = [token_count(len(picture)) for picture in pictures]
        batch = nn.utils.rnn.pad_sequence(pictures, batch_first=True).to(ear.widen.weight)
        index = torch.arange(token_count(batch.shape[1]), device=batch.device)
        seen = index < torch.tensor(counts, device=batch.device)[:, None]
        states = ear(batch, None if bool(seen.all()) else seen)
        return [clip[:count] for clip, count in zip(states, counts, strict=True)]

    def project_audio(self, heard: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        if not heard:
            return []
        width, narrow = self.module.config.whisper["d_model"], self.module.config.beats.dim
        rows = [clip.to(self.module.ln_speech.weight) for clip in heard]
        speech = torch.stack([row[: self._states * width].view(self._states, width) for row in rows])
        return list(self.module.join(speech, [row[self._states * width :].view(-1, narrow) for row in rows]))

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        table = self.module.llama.model.embed_tokens
        embedded: Tensor = table(ids.to(table.weight.device))
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`."""
        return attention.decode_packed(self.module.llama.model, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        scores: Tensor = self.module.llama.lm_head(hidden)
        return scores

    def save(self, folder: Path) -> None:
        """Write a folder for `load`: all weights with LoRA merged in, LoRA by itself, sizes, tokenizer.

        Without new LoRA `load` gives the same weights bit for bit; with it the merged weights, each rounded once.
        """
        write(
            folder, self.module.config, checkpoint.merged_state(self.module), self.tokenizer.backend,
            lora.concatenate_ranks(self.merged_lora, lora.collect(self.module)),
        )  # fmt: skip


def write(
    folder: Path, config: SalmonnConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer, merged: Mapping[str, Tensor]
) -> None:
    """Write what `load` reads; `merged` are the LoRA matrices that the decoder's weights in `state` hold already."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, tensors in (("model", state), ("lora", merged)):
        whole = {name: value.contiguous() for name, value in tensors.items()}
        save_file(whole, folder / f"{part}.safetensors", {"format": "pt"})
    write_json(folder / "config.json", {"model_type": "salmonn", **asdict(config)})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "earwise.json", {"family": "salmonn"})


def empty(config: SalmonnConfig) -> SalmonnModule:
    """The module of these sizes without weights: on the meta device, but for the rotary frequencies."""
    with torch.device("meta"):
        module = SalmonnModule(config)
    rotary = module.llama.model.rotary_emb
    module.llama.model.rotary_emb = type(rotary)(config=module.llama.config)
    return module


def from_parts(
    module: SalmonnModule, tokenizer: Tokenizer, *, name: str = "salmonn", revision: str = "unsaved",
    merged_lora: Mapping[str, Tensor] | None = None,
) -> Salmonn:  # fmt: skip
    """Put a model together; the module's parameters are frozen in place.

    Args:
        module: Any sizes, a window of whole seconds.
        tokenizer: Knows Llama's `<s>`, `</s>` and `<unk>`.
        name: For result rows.
        revision: Hash of the weights.
        merged_lora: LoRA matrices that are merged into the decoder already.
    Raises:
        ModelError: if the parts do not fit each other.
    """
    rows = module.llama.config.vocab_size
    if tokenizer.get_vocab_size() > rows:
        raise ModelError(
            f"{name}: {tokenizer.get_vocab_size()} tokens but {rows} embeddings; take both from one checkpoint"
        )
    states = module.config.whisper["max_source_positions"]
    if states % STATES_PER_S:
        raise ModelError(f"{name}: a window of {states} states is no whole second; give a multiple of {STATES_PER_S}")
    return Salmonn(
        module.eval().requires_grad_(False), tokenizer, name=name, revision=revision, merged_lora=merged_lora or {}
    )


def _id(tokenizer: Tokenizer, mark: str) -> int:
    found: int | None = tokenizer.token_to_id(mark)
    if found is None:
        raise ModelError(f"salmonn: the tokenizer has no {mark}; give the tokenizer of Vicuna")
    return found


def load(weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Salmonn:
    """SALMONN from a folder that `python -m earwise.models.convert.salmonn` or `save` wrote.

    Args:
        weights: The folder.
        device: Where to put it.
        dtype: Of all weights; None is what each part is stored as.
    Raises:
        ModelError: if there is no folder, or tensors are missing, left over or of another shape.
    """
    if weights is None:
        raise ModelError(
            "salmonn: no weights given; make a folder of the released parts with "
            "`python -m earwise.models.convert.salmonn --help`, then name it as the model (--model FOLDER)"
        )
    values = checkpoint.config(weights, ("salmonn",), WHAT)
    shards = checkpoint.safetensors_shards(weights)
    try:
        module = empty(SalmonnConfig.read(values))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{weights / 'config.json'}: not {WHAT}'s ({error!r}); convert it again") from error
    state: dict[str, Tensor] = {}
    for shard in shards:
        try:
            state |= load_file(shard)
        except SafetensorError as error:
            raise ModelError(f"{shard}: not a whole safetensors file ({error}); convert or copy it again") from error
    merged_lora = {name: state.pop(name) for name in list(state) if ".lora_" in name}
    fill(module, state, weights)
    for parameter in module.parameters():  # by parameter: rotary frequencies, a buffer, stay exact
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    return from_parts(
        module.to(device), checkpoint.tokenizer(weights, PLACEHOLDER), revision=checkpoint.digest(shards),
        merged_lora=merged_lora,
    )  # fmt: skip


def fill(module: SalmonnModule, state: Mapping[str, Tensor], source: Path) -> None:
    """Give an `empty` module its weights, without a copy.

    Raises:
        ModelError: naming `source` and the tensors that are missing, left over or of another shape.
    """
    check(module.state_dict(), state, source, WHAT)
    module.load_state_dict(state, assign=True)


def check(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path, what: str) -> None:
    """Refuse tensors that are not exactly those that are wanted, by name and shape; see `checkpoint.check_keys`."""
    both = sorted(wanted.keys() & state.keys())
    strange = [(name, tuple(state[name].shape), tuple(wanted[name].shape)) for name in both]
    other = checkpoint.misshapen([(name, stored, needed) for name, stored, needed in strange if stored != needed])
    checkpoint.check_keys(source, wanted.keys() - state.keys(), state.keys() - wanted.keys(), other, what)
