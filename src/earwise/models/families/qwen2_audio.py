"""Qwen2-Audio: transformers' own class behind the `AudioLM` contract, for the released 7B, R1-AQA's weights, and tiny
configurations in tests.

Encoder (Whisper large v3, pooled by two: 40 ms a token), one linear connector, a Qwen2 decoder that runs under the
forest's attention. The class pads every clip to its window and masks the padding; here only frames that exist are
encoded, plus the convolutions' margin of padded frames, which gives the same numbers at a fraction of the cost
(`trim=False` runs the padded window; a test holds the two together).

The base model and Instruct share one architecture and differ in their prompts: bare, or ChatML. Which one a checkpoint
is, it says itself: `save` writes it down, and a published one ends its answers with `<|im_end|>` (Instruct) or never
does (base).

Source: papers/qwen2-audio.md sections 1-4; transformers 5 `models/qwen2_audio`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.errors import AudioError, ModelError
from earwise.models import checkpoint
from earwise.models.parts import attention, mel
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.models.tokenizer import TextTokenizer, known_ids
from earwise.prompts import AUDIO_PLACEHOLDER, QWEN2_AUDIO, QWEN2_AUDIO_BASE, ChatTemplate
from earwise.types import Waveform

HUB = "Qwen/Qwen2-Audio-7B-Instruct"
END_MARKS = {QWEN2_AUDIO.name: ("<|im_end|>", "<|endoftext|>"), QWEN2_AUDIO_BASE.name: ("<|endoftext|>",)}
TEMPLATES = {template.name: template for template in (QWEN2_AUDIO, QWEN2_AUDIO_BASE)}
WHAT = "a Qwen2-Audio model"
GROUPS = {
    "encoder": ("model.audio_tower.",),
    "connector": ("model.multi_modal_projector.",),
    "decoder": ("model.language_model.", "lm_head."),
}


def encoder_states(frames: int) -> int:
    """States (20 ms) after the second convolution, which takes every other of `frames` mel frames (10 ms).

    >>> encoder_states(100), encoder_states(3)
    (50, 2)
    """
    return (frames - 1) // 2 + 1


def token_count(frames: int) -> int:
    """Audio tokens (40 ms) of `frames` mel frames: whole pairs of encoder states, so one or two frames give none.

    >>> [token_count(frames) for frames in (1, 2, 3, 100, 3000)]
    [0, 0, 1, 25, 750]
    """
    return (encoder_states(frames) - 2) // 2 + 1


class Qwen2Audio:
    """`AudioLM` over transformers' class; made by `load` or `from_parts`, see `models.base` for the contract."""

    def __init__(
        self, module: Qwen2AudioForConditionalGeneration, tokenizer: Tokenizer, extractor: WhisperFeatureExtractor, *,
        name: str, revision: str, trim: bool, template: ChatTemplate, beside: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        self.module = module
        self.name = name
        self.revision = revision
        self.trims = trim
        self.masks = True
        self._tower = module.model.audio_tower
        self._window = 2 * module.config.audio_config.max_source_positions
        """Mel frames of the padded window: 3000 as released, fewer in shortened configurations."""
        self.spec = AudioSpec(
            sample_rate=mel.SAMPLE_RATE, max_s=self._window * HOP_SAMPLES / mel.SAMPLE_RATE, tokens_per_s=25.0
        )
        self.template = template
        self.groups = GROUPS
        self._extractor = extractor
        self._beside = beside
        self.placeholder_id: int = module.config.audio_token_index
        self.tokenizer = TextTokenizer(tokenizer, self.placeholder_id, known_ids(tokenizer, END_MARKS[template.name]))
        self.eos_ids = self.tokenizer.eos_ids

    def audio_tokens(self, samples: int) -> int:
        """Audio tokens of a clip of `samples` samples, 25 a second.

        Raises:
            AudioError: if the clip is longer than the window, or so short (20 ms) that it gives no token.
        """
        return token_count(self._frames(samples))

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """Pooled, normed encoder states of each clip, `(audio_seq, encoder dim)`: the class's own for real frames."""
        if not waveforms:
            return []
        frames = [self._frames(len(wave)) for wave in waveforms]
        mels = [self.features(wave) for wave in waveforms]
        states = [encoder_states(count) for count in frames]
        batch = nn.utils.rnn.pad_sequence([clip.T for clip in mels], batch_first=True).mT.to(self._tower.conv1.weight)
        longest = max(states) if self.trims else self._window // 2
        mask = None
        if min(states) < longest:
            ends = torch.tensor(states, device=batch.device)
            seen = torch.arange(longest, device=batch.device) < ends[:, None]
            mask = seen[:, None, None].expand(-1, 1, longest, -1)
        hidden = self._encode(batch, longest, mask) if self.trims else self._tower(batch, mask).last_hidden_state
        return [hidden[row, : token_count(count)] for row, count in enumerate(frames)]

    def features(self, wave: Waveform) -> Tensor:
        """Log-mel `(mels, frames)` of the padded window, cut to what the clip's encoder states depend on if `trims`."""
        frames = self._frames(len(wave))
        # State s - 1 sees first-convolution outputs up to 2s - 1, and these see mel frames up to 2s.
        kept = min(self._window, 2 * encoder_states(frames) + 1) if self.trims else self._window
        return mel.unpadded_log_mel(wave, self._extractor, kept, window=self._window)

    def project_audio(self, heard: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        projector = self.module.model.multi_modal_projector
        return [projector(clip.to(projector.linear.weight)) for clip in heard]

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        table = self.module.model.language_model.embed_tokens
        embedded: Tensor = table(ids.to(table.weight.device))
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`."""
        return attention.decode_packed(self.module.model.language_model, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        scores: Tensor = self.module.lm_head(hidden)
        return scores

    def save(self, folder: Path) -> None:
        """Write a whole checkpoint that transformers reads too: safetensors with LoRA merged in, config, tokenizer.

        Without LoRA `load` gives the same weights bit for bit; with LoRA the merged weights, each rounded once.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.module.save_pretrained(folder, state_dict=checkpoint.merged_state(self.module))
        self._extractor.save_pretrained(folder)
        for name, content in self._beside.items():
            (folder / name).write_bytes(content)
        self.tokenizer.save(folder)
        marks = {"family": "qwen2_audio", "template": self.template.name}
        (folder / "earwise.json").write_text(json.dumps(marks, indent=1) + "\n")

    def _frames(self, samples: int) -> int:
        """Mel frames of a clip: one per started 10 ms."""
        frames = mel.frame_count(samples)
        if frames > self._window:
            seconds = samples / mel.SAMPLE_RATE
            raise AudioError(
                f"clip of {seconds:.2f} s is longer than the {self.spec.max_s:.0f} s that {self.name} hears; "
                "cut it, or choose long_audio: truncate or chunk"
            )
        if token_count(frames) < 1:
            raise AudioError(
                f"clip of {samples} samples gives no audio token in {self.name}; it hears clips longer than 20 ms"
            )
        return frames

    def _encode(self, mels: Tensor, longest: int, seen: Tensor | None) -> Tensor:
        """The tower's own layers on `longest` states instead of the whole window, `(clips, longest // 2, dim)`."""
        tower = self._tower
        hidden = nn.functional.gelu(tower.conv2(nn.functional.gelu(tower.conv1(mels)))).mT[:, :longest]
        hidden = hidden + tower.embed_positions.weight[:longest]
        for layer in tower.layers:
            hidden = layer(hidden, seen)
        normed: Tensor = tower.layer_norm(tower.avg_pooler(hidden.mT).mT)
        return normed


def from_parts(
    module: Qwen2AudioForConditionalGeneration, tokenizer: Tokenizer, extractor: WhisperFeatureExtractor, *,
    name: str = "qwen2_audio", revision: str = "unsaved", trim: bool = True, template: ChatTemplate = QWEN2_AUDIO,
    beside: Mapping[str, bytes] | None = None,
) -> Qwen2Audio:  # fmt: skip
    """Put a model together from a transformers model, changed in place: the forest's attention, frozen parameters.

    Args:
        module: Any size, any window (`max_source_positions`).
        tokenizer: Knows `<|AUDIO|>` under the model's `audio_token_index`, and `<|im_end|>`.
        extractor: Whisper features at 16 kHz with the encoder's number of mel bins.
        name: For result rows.
        revision: Hash of the weights.
        trim: Encode only frames that exist; False pads every clip to the window.
        template: `QWEN2_AUDIO` (Instruct) or `QWEN2_AUDIO_BASE`.
        beside: Files of the checkpoint that `save` hands on as they are, see `checkpoint.side_files`.
    Raises:
        ModelError: if the parts do not fit each other, or the decoder needs sliding-window attention.
    """
    config = module.config
    mark = tokenizer.token_to_id(AUDIO_PLACEHOLDER)
    if mark != config.audio_token_index:
        raise ModelError(
            f"{name}: the tokenizer gives {AUDIO_PLACEHOLDER} the id {mark}, the config {config.audio_token_index}; "
            "take both from one checkpoint"
        )
    end = END_MARKS[template.name][0]
    if tokenizer.token_to_id(end) is None:
        raise ModelError(f"{name}: the tokenizer has no {end}; give the checkpoint's own tokenizer")
    if tokenizer.get_vocab_size() > config.text_config.vocab_size:
        raise ModelError(
            f"{name}: {tokenizer.get_vocab_size()} tokens but {config.text_config.vocab_size} embeddings; "
            "take both from one checkpoint"
        )
    mel.check_features(extractor, config.audio_config.num_mel_bins, name)
    if "sliding_attention" in config.text_config.layer_types:
        raise ModelError(
            f"{name}: the decoder uses sliding-window attention, which a forest does not; "
            "set use_sliding_window to false in config.json"
        )
    module.model.language_model.config._attn_implementation = attention.IMPLEMENTATION
    module.model.audio_tower.config._attn_implementation = "sdpa"
    return Qwen2Audio(
        module.eval().requires_grad_(False), tokenizer, extractor, name=name, revision=revision, trim=trim,
        template=template, beside=beside or {},
    )  # fmt: skip


def load(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None, trim: bool = True
) -> Qwen2Audio:
    """A checkpoint as published (key names of transformers 4 or 5) or as written by `save`.

    Args:
        weights: Folder with config.json, *.safetensors and the tokenizer; None takes the released Instruct model from a
            model hub.
        device: Where to put it.
        dtype: Of all weights; None is the stored one (bfloat16 as released).
        trim: See `from_parts`.
    Raises:
        ModelError: if there is no folder and no hub, weights are pickled, or tensors are missing, left over or of
            another shape.
    """
    folder = weights
    if folder is None:
        folder = checkpoint.from_hub(HUB, "qwen2_audio: no weights given", "give the folder of a checkpoint")
    checkpoint.config(folder, ("qwen2_audio",), WHAT)
    shards = checkpoint.safetensors_shards(folder)
    try:
        module, report = Qwen2AudioForConditionalGeneration.from_pretrained(
            str(folder), dtype=dtype or "auto", use_safetensors=True, local_files_only=True, attn_implementation="sdpa",
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: not a Qwen2-Audio checkpoint ({' '.join(str(error).split())[:300]})") from error
    missing = set(report["missing_keys"])
    if module.config.text_config.tie_word_embeddings:
        # The class declares no tied weights, so a tied head has to be tied here, whether it is in the file or not.
        module.lm_head.weight = module.model.language_model.embed_tokens.weight
        missing.discard("lm_head.weight")
    checkpoint.check_keys(
        folder, missing, report["unexpected_keys"], checkpoint.misshapen(report["mismatched_keys"]), WHAT
    )
    extractor = mel.load_feature_extractor(folder, module.config.audio_config.num_mel_bins)
    tokenizer = checkpoint.tokenizer(folder, AUDIO_PLACEHOLDER)
    return from_parts(
        module.to(device), tokenizer, extractor, revision=checkpoint.digest(shards), trim=trim,
        template=_template(folder, tokenizer), beside=checkpoint.side_files(folder),
    )  # fmt: skip


def _template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat format that a checkpoint was trained with: as `save` wrote it, or by the tokens that end its answers."""
    marker, ends = folder / "earwise.json", folder / "generation_config.json"
    if marker.exists():
        named = json.loads(marker.read_text(encoding="utf-8")).get("template", QWEN2_AUDIO.name)
        if named not in TEMPLATES:
            raise ModelError(f"{marker}: template {named!r} is none of {', '.join(TEMPLATES)}")
        return TEMPLATES[named]
    found = json.loads(ends.read_text(encoding="utf-8")).get("eos_token_id") if ends.exists() else None
    stops = {found} if isinstance(found, int) else set(found or ())
    base = bool(stops) and tokenizer.token_to_id(END_MARKS[QWEN2_AUDIO.name][0]) not in stops
    return QWEN2_AUDIO_BASE if base else QWEN2_AUDIO
