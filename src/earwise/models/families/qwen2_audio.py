"""Qwen2-Audio: transformers' own class behind the `AudioLM` contract, for the released 7B, R1-AQA's weights, and tiny
configurations in tests.

The encoder is Whisper large v3 with states averaged in pairs (40 ms a token); then one linear connector and a Qwen2
decoder, which runs under the forest's attention. transformers' class pads every clip to its window and masks the
padding. Here only frames that contain audio are encoded, and the few padded frames that the convolutions reach, which
gives the same numbers at a fraction of the cost (`trim=False` encodes the padded window; a test compares the two).

The base model and Instruct share one architecture and differ in their prompts: bare, or ChatML. The checkpoint says
which one it is: `save` writes it down, and a published one ends its answers with `<|im_end|>` (Instruct) or never does
(base).

Source: Qwen2-Audio (arXiv:2407.10759); transformers 5 `models/qwen2_audio`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from earwise.audio import LONG_AUDIO_REMEDY, AudioSpec
from earwise.errors import AudioError, ModelError, is_out_of_memory
from earwise.models import checkpoint, hub, registry
from earwise.models.base import EmptyModel
from earwise.models.decoders import transformers_decoder
from earwise.models.detect import MARKER
from earwise.models.parts import attention, mel
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.models.tokenizer import (
    TextTokenizer,
    check_placeholder,
    check_special_tokens,
    check_vocabulary,
    known_ids,
)
from earwise.prompts import AUDIO_PLACEHOLDER, QWEN2_AUDIO, QWEN2_AUDIO_BASE, ChatTemplate
from earwise.types import Waveform

FAMILY = registry.get("qwen2_audio")
LABEL = "a Qwen2-Audio model"
END_TOKENS = {QWEN2_AUDIO.name: ("<|im_end|>", "<|endoftext|>"), QWEN2_AUDIO_BASE.name: ("<|endoftext|>",)}
TEMPLATES = {template.name: template for template in (QWEN2_AUDIO, QWEN2_AUDIO_BASE)}
TOKENS_PER_S = 25.0
PARAMETER_PREFIXES = {
    "encoder": ("model.audio_tower.",),
    "connector": ("model.multi_modal_projector.",),
    "decoder": ("model.language_model.", "lm_head."),
}


def state_count(frames: int) -> int:
    """Encoder states (20 ms each) after the second convolution, which takes every other of `frames` mel frames (10 ms).

    >>> state_count(100), state_count(3)
    (50, 2)
    """
    return (frames - 1) // 2 + 1


def token_count(frames: int) -> int:
    """Audio tokens (40 ms each) of `frames` mel frames: whole pairs of encoder states, so one or two frames give none.

    >>> [token_count(frames) for frames in (1, 2, 3, 100, 3000)]
    [0, 0, 1, 25, 750]
    """
    return (state_count(frames) - 2) // 2 + 1


def window_frames(config: Any) -> int:
    """Mel frames of the padded window: 3000 as released, fewer in shortened configurations."""
    return 2 * int(config.audio_config.max_source_positions)


def audio_spec(config: Any) -> AudioSpec:
    """16 kHz, clips as long as the window, 25 tokens a second."""
    window_s = window_frames(config) * HOP_SAMPLES / mel.SAMPLE_RATE
    return AudioSpec(sample_rate=mel.SAMPLE_RATE, max_s=window_s, tokens_per_s=TOKENS_PER_S)


class Qwen2Audio:
    """`AudioLM` over transformers' class; made by `load` or `from_parts`, see `models.base` for the contract."""

    def __init__(
        self, module: Qwen2AudioForConditionalGeneration, tokenizer: Tokenizer, extractor: WhisperFeatureExtractor, *,
        name: str, revision: str, trim: bool, template: ChatTemplate, side_files: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        self.module = module
        self.name = name
        self.revision = revision
        self.trims_padding = trim
        self.masks_padding = True
        self.spec = audio_spec(module.config)
        self.template = template
        self.parameter_prefixes = PARAMETER_PREFIXES
        self.placeholder_id: int = module.config.audio_token_index
        self.tokenizer = TextTokenizer(
            tokenizer, self.placeholder_id, known_ids(tokenizer, END_TOKENS[template.name]), template
        )
        self.eos_ids = self.tokenizer.eos_ids
        self._tower = module.model.audio_tower
        self._window = window_frames(module.config)
        self._extractor = extractor
        self._side_files = side_files

    def audio_tokens(self, samples: int) -> int:
        """Number of audio tokens of a clip of `samples` samples, 25 a second.

        Raises:
            AudioError: if the clip is longer than the window, or so short (20 ms) that it gives no token.
        """
        return token_count(self._frames(samples))

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """Encoder states of each clip after pooling and norm, `(audio_seq, encoder dim)`: those that transformers'
        class computes for the frames that contain audio."""
        if not waveforms:
            return []
        frames = [self._frames(len(waveform)) for waveform in waveforms]
        mels = [self.features(waveform) for waveform in waveforms]
        states = [state_count(count) for count in frames]
        batch = nn.utils.rnn.pad_sequence([clip.T for clip in mels], batch_first=True).mT.to(self._tower.conv1.weight)
        longest = max(states) if self.trims_padding else self._window // 2
        mask = None
        if min(states) < longest:
            lengths = torch.tensor(states, device=batch.device)
            is_audio = torch.arange(longest, device=batch.device) < lengths[:, None]
            mask = is_audio[:, None, None].expand(-1, 1, longest, -1)
        if self.trims_padding:
            hidden = self._encode_trimmed(batch, longest, mask)
        else:
            hidden = self._tower(batch, mask).last_hidden_state
        return [hidden[row, : token_count(count)] for row, count in enumerate(frames)]

    def features(self, waveform: Waveform) -> Tensor:
        """Log-mel `(mels, frames)` of the padded window; if `trims_padding`, cut to the frames that the clip's encoder
        states depend on."""
        frames = self._frames(len(waveform))
        # State s - 1 depends on outputs of the first convolution up to 2s - 1, and these on mel frames up to 2s.
        needed = min(self._window, 2 * state_count(frames) + 1) if self.trims_padding else self._window
        return mel.unpadded_log_mel(waveform, self._extractor, needed, window=self._window)

    def project_audio(self, encoder_states: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        projector = self.module.model.multi_modal_projector
        return [projector(clip.to(projector.linear.weight)) for clip in encoder_states]

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        table = self.module.model.language_model.embed_tokens
        embedded: Tensor = table(ids.to(table.weight.device))
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`."""
        return transformers_decoder.decode_packed(self.module.model.language_model, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        scores: Tensor = self.module.lm_head(hidden)
        return scores

    def save(self, folder: Path) -> None:
        """Write a whole checkpoint that transformers reads too: safetensors with LoRA merged in, config, tokenizer.

        Without LoRA `load` gives the same weights bit for bit; with LoRA the merged weights, each rounded once.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with checkpoint.no_progress_bars():
            self.module.save_pretrained(folder, state_dict=checkpoint.merged_state_dict(self.module))
        self._extractor.save_pretrained(folder)
        for name, content in self._side_files.items():
            (folder / name).write_bytes(content)
        self.tokenizer.save(folder)
        checkpoint.write_marker(folder, {"family": FAMILY.name, "template": self.template.name})

    def _frames(self, samples: int) -> int:
        """Mel frames of a clip: one per started 10 ms."""
        frames = mel.frame_count(samples)
        if frames > self._window:
            raise AudioError(
                f"clip of {samples / mel.SAMPLE_RATE:.2f} s is longer than the {self.spec.max_s:.0f} s that "
                f"{self.name} takes; {LONG_AUDIO_REMEDY}"
            )
        if token_count(frames) < 1:
            raise AudioError(
                f"clip of {samples} samples gives no audio token in {self.name}; it takes clips longer than 20 ms"
            )
        return frames

    def _encode_trimmed(self, mels: Tensor, longest: int, mask: Tensor | None) -> Tensor:
        """The tower's own layers on `longest` states instead of the whole window, `(clips, longest // 2, dim)`."""
        tower = self._tower
        hidden = nn.functional.gelu(tower.conv2(nn.functional.gelu(tower.conv1(mels)))).mT[:, :longest]
        hidden = hidden + tower.embed_positions.weight[:longest]
        for layer in tower.layers:
            hidden = layer(hidden, mask)
        normed: Tensor = tower.layer_norm(tower.avg_pooler(hidden.mT).mT)
        return normed


def from_parts(
    module: Qwen2AudioForConditionalGeneration, tokenizer: Tokenizer, extractor: WhisperFeatureExtractor, *,
    name: str = FAMILY.name, revision: str = "unsaved", trim: bool = True, template: ChatTemplate = QWEN2_AUDIO,
    side_files: Mapping[str, bytes] | None = None,
) -> Qwen2Audio:  # fmt: skip
    """Put a model together from a transformers model, which is changed in place: it gets the forest's attention, and
    its parameters are frozen.

    Args:
        module: Model of any size with any window (`max_source_positions`).
        tokenizer: Has `<|AUDIO|>` under the model's `audio_token_index`, and `<|im_end|>`.
        extractor: Whisper features at 16 kHz with the encoder's number of mel bins.
        name: Name in result rows.
        revision: Hash of the weights.
        trim: Encode only frames that contain audio; False pads every clip to the window.
        template: `QWEN2_AUDIO` (Instruct) or `QWEN2_AUDIO_BASE`.
        side_files: Files of the checkpoint that `save` writes back unchanged, see `checkpoint.read_side_files`.
    Raises:
        ModelError: if the parts do not fit each other.
    """
    config = module.config
    check_placeholder(tokenizer, AUDIO_PLACEHOLDER, config.audio_token_index, name)
    check_special_tokens(tokenizer, END_TOKENS[template.name][:1], name, "give the checkpoint's own tokenizer")
    check_vocabulary(tokenizer, config.text_config.vocab_size, name)
    mel.check_features(extractor, config.audio_config.num_mel_bins, name)
    module.model.language_model.config._attn_implementation = transformers_decoder.IMPLEMENTATION
    module.model.audio_tower.config._attn_implementation = "sdpa"
    return Qwen2Audio(
        module.eval().requires_grad_(False), tokenizer, extractor, name=name, revision=revision, trim=trim,
        template=template, side_files=side_files or {},
    )  # fmt: skip


def load(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None, trim: bool = True
) -> Qwen2Audio:
    """Load a checkpoint as published (tensor names of transformers 4 or 5) or as written by `save`.

    Args:
        weights: Folder with config.json, *.safetensors and the tokenizer; None downloads the released Instruct model
            from a model hub.
        device: Device to put the model on.
        dtype: Dtype of all weights; None keeps the stored one (bfloat16 as released).
        trim: See `from_parts`.
    Raises:
        ModelError: if there is no folder and no hub, the weights are pickled, or tensors are missing, unexpected or of
            another shape.
    """
    folder = weights
    if folder is None:
        folder = hub.fetch(FAMILY.hub).folder
    checkpoint.read_config(folder, FAMILY.model_types, LABEL)
    files = checkpoint.safetensors_files(folder)
    try:
        with checkpoint.no_progress_bars():
            module, report = Qwen2AudioForConditionalGeneration.from_pretrained(
                str(folder), dtype=dtype or "auto", use_safetensors=True, local_files_only=True,
                attn_implementation="sdpa", output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{folder}: not a Qwen2-Audio checkpoint ({checkpoint.one_line(error)})") from error
    missing = set(report["missing_keys"])
    if module.config.text_config.tie_word_embeddings:
        # The class declares no tied weights, so a tied head has to be tied here, whether it is in the file or not.
        module.lm_head.weight = module.model.language_model.embed_tokens.weight
        missing.discard("lm_head.weight")
    mismatches = checkpoint.describe_mismatches(report["mismatched_keys"])
    checkpoint.check_tensors(folder, missing, report["unexpected_keys"], mismatches, LABEL)
    extractor = mel.load_feature_extractor(folder, module.config.audio_config.num_mel_bins)
    tokenizer = checkpoint.read_tokenizer(folder, AUDIO_PLACEHOLDER)
    return from_parts(
        module.to(device), tokenizer, extractor, revision=checkpoint.weights_digest(files), trim=trim,
        template=_template_of(folder, tokenizer), side_files=checkpoint.read_side_files(folder),
    )  # fmt: skip


def build_empty(content: Mapping[str, Any]) -> EmptyModel:
    """The model without weights, on the meta device, from the content of a checkpoint's config.json."""
    config = Qwen2AudioConfig.from_dict(dict(content))
    with torch.device("meta"):
        module = Qwen2AudioForConditionalGeneration(config)
    return EmptyModel(module, PARAMETER_PREFIXES, audio_spec(config))


def _template_of(folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat format that a checkpoint was trained with: the one that `save` wrote down, or the one that fits the
    tokens that end its answers."""
    marker, generation = folder / MARKER, folder / "generation_config.json"
    if marker.exists():
        name = json.loads(marker.read_text(encoding="utf-8")).get("template", QWEN2_AUDIO.name)
        if name not in TEMPLATES:
            raise ModelError(f"{marker}: template {name!r} is none of {', '.join(TEMPLATES)}")
        return TEMPLATES[name]
    ends = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.exists() else None
    end_ids = {ends} if isinstance(ends, int) else set(ends or ())
    is_base = bool(end_ids) and tokenizer.token_to_id(END_TOKENS[QWEN2_AUDIO.name][0]) not in end_ids
    return QWEN2_AUDIO_BASE if is_base else QWEN2_AUDIO
