"""Qwen2.5-Omni's thinker (3B, 7B), the part that listens, reads and writes text: a row of the native table.

The encoder is a Whisper large that attends within blocks of two seconds; padding is cut off before it, so only real
frames are ever encoded, and blocks never see each other: all blocks of all clips are one batch. Audio and text have the
same position on all three axes of the rotary embedding, one a token, so the forest's depths are the positions (tests
hold this against the class's own `get_rope_index`). The thinker is read out of a full checkpoint, in which the talker
and the vocoder are never opened, or from a folder that holds nothing else. Its visual tower is never computed: it is
taken out of the model, kept as it was read, and written back by `save`, in the released layout without talker and
vocoder (`enable_audio_output` is off): what reads the released thinker reads the saved one.

Source: papers/qwen2.5-omni.md sections 1-3; transformers 5 `models/qwen2_5_omni`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models.families import native
from earwise.models.families.qwen2_audio import encoder_states, token_count
from earwise.models.parts import mel
from earwise.models.parts.whisper import run_encoder_layer
from earwise.prompts import AUDIO_PLACEHOLDER, ChatTemplate
from earwise.types import Waveform

WINDOW_S = 300
"""Longest clip of the released feature extractor."""

# No "Audio k:" as in Qwen2-Audio; the system line is the chat template's own, the longer one about a virtual human is
# needed for speech output only (section 3).
TEMPLATE = ChatTemplate(
    "qwen2.5-omni",
    "<|im_start|>{role}\n",
    "<|im_end|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "You are a helpful assistant.",
)


def extractor(folder: Path | None, config: Any) -> WhisperFeatureExtractor:
    """The checkpoint's feature extractor; clips up to 300 s where it has none."""
    return mel.load_feature_extractor(folder, config.audio_config.num_mel_bins, WINDOW_S)


def spec(config: Any, features: WhisperFeatureExtractor) -> AudioSpec:
    """25 tokens a second, as long as the features' window: positions in the encoder start anew in every block.

    Raises:
        ModelError: if the features are not what the encoder was made for.
    """
    return mel.audio_spec(features, config.audio_config.num_mel_bins, "qwen25_omni", 25.0)


def tokens(config: Any, features: WhisperFeatureExtractor, samples: int) -> int:
    """Audio tokens (40 ms) of a clip, counted as in Qwen2-Audio: none below 20 ms."""
    return token_count(mel.frame_count(samples))


def encode_audio(module: Any, features: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Pooled, normed encoder states of each clip, `(audio_seq, encoder dim)`, before the projection."""
    tower = module.model.audio_tower
    clips = [mel.unpadded_log_mel(wave, features).T.split(2 * tower.n_window) for wave in waveforms]  # (frames, mels) a block
    blocks = [block for clip in clips for block in clip]
    weight = tower.conv1.weight
    frames = torch.tensor([len(block) for block in blocks], device=weight.device)
    batch = nn.utils.rnn.pad_sequence(blocks, batch_first=True).mT.to(weight)
    real = torch.arange(batch.shape[2], device=weight.device) < frames[:, None]
    hidden = gelu(tower.conv2(gelu(tower.conv1(batch)) * real[:, None])).mT
    hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden)
    counts = [encoder_states(len(block)) for block in blocks]
    lengths = torch.tensor(counts, device=weight.device)
    seen = (torch.arange(hidden.shape[1], device=weight.device) < lengths[:, None])[:, None, None]
    mask = None if bool(seen.all()) else seen
    for layer in tower.layers:
        hidden = run_encoder_layer(layer, hidden, mask)
    states = [row[:count] for row, count in zip(hidden, counts, strict=True)]
    out, at = [], 0
    for clip in clips:
        whole = torch.cat(states[at : at + len(clip)])
        pairs = len(whole) // 2
        out.append(tower.ln_post((whole[: 2 * pairs : 2] + whole[1 : 2 * pairs : 2]) / 2))
        at += len(clip)
    return out


def project_audio(module: Any, heard: Sequence[Tensor]) -> list[Tensor]:
    """The projection at the encoder's end, `(audio_seq, dim)` a clip."""
    projection = module.model.audio_tower.proj
    return [projection(clip.to(projection.weight)) for clip in heard]


ROW = native.Row(
    family="qwen25_omni",
    what="a Qwen2.5-Omni model",
    hub="Qwen/Qwen2.5-Omni-7B",
    model_class="Qwen2_5OmniThinkerForConditionalGeneration",
    types={"qwen2_5_omni": "thinker", "qwen2_5_omni_thinker": ""},
    mark=AUDIO_PLACEHOLDER,
    end_marks=("<|im_end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=tuple(f"model.audio_tower.{part}." for part in ("layers", "conv1", "conv2", "ln_post")),
    connector=("model.audio_tower.proj.",),
    decoder=("model.language_model.", "lm_head."),
    language="model.language_model",
    placeholder_id=lambda config: config.audio_token_id,
    extractor=extractor,
    spec=spec,
    tokens=tokens,
    encode_audio=encode_audio,
    project_audio=project_audio,
    trims=True,
    masks=True,
    unread=("talker.", "token2wav."),
    # Two embeddings of the encoder are used by nothing in the class's forward either.
    left_out=("model.visual.", "model.audio_tower.audio_bos_eos_token."),
    longest=native.sliding_window,
    wrap={"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"], "enable_audio_output": False},
)

load = functools.partial(native.load, "qwen25_omni")
