"""Qwen3-Omni's thinker (30B-A3B): a row of the native table.

The encoder convolves each second of sound by itself (13 tokens), then attends within windows of eight; only real frames
are encoded. Three convolutions in two dimensions are not masked, so what the last, shorter second of a clip gives
depends a little on how far it is padded: to a whole second where the clip has one, not at all where it is shorter than
that, which is what the class computes for a clip by itself (in a conversation with longer clips it pads a short one to
theirs). Positions are one a token on all three axes. The decoder is a mixture of experts, routed token by token, so the
forest leaves it alone; the load-balancing loss is no part of any stage here. Visual tower, talker and vocoder: as in
`models/qwen25_omni.py`.

Source: transformers 5 `models/qwen3_omni_moe`; papers/qwen2.5-omni.md section 6.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models.families.native import Row
from earwise.models.families.qwen25_omni import extractor
from earwise.models.parts import mel
from earwise.models.parts.whisper import run_encoder_layer
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

CHUNK_TOKENS = 13
CHUNK_FRAMES = 100
"""The class counts 13 tokens a chunk whatever its configuration says, which is right for chunks of 100 frames only."""

# The released chat template puts no system line in front.
TEMPLATE = ChatTemplate("qwen3-omni", "<|im_start|>{role}\n", "<|im_end|>", "<|audio_start|>", "<|audio_end|>")


def token_count(frames: int) -> int:
    """Audio tokens of `frames` mel frames: 13 a second, and of the rest what three halvings leave.

    >>> [token_count(frames) for frames in (1, 8, 9, 99, 100, 101, 3000)]
    [1, 1, 2, 13, 13, 14, 390]
    """
    whole, rest = divmod(frames, CHUNK_FRAMES)
    for _ in range(3):
        rest = (rest + 1) // 2
    return CHUNK_TOKENS * whole + rest


def spec(config: Any, features: WhisperFeatureExtractor) -> AudioSpec:
    """13 tokens a second, as long as the features' window.

    Raises:
        ModelError: if the features are not what the encoder was made for.
    """
    return mel.audio_spec(features, config.audio_config.num_mel_bins, "qwen3_omni", 13.0)


def tokens(config: Any, features: WhisperFeatureExtractor, samples: int) -> int:
    """Audio tokens (80 ms) of a clip."""
    return token_count(mel.frame_count(samples))


def encode_audio(module: Any, features: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Normed encoder states of each clip, `(audio_seq, encoder dim)`: what the class gives to its two projections."""
    tower = module.model.audio_tower
    clips = [_convolved(tower, mel.unpadded_log_mel(wave, features)) for wave in waveforms]
    windows = [window for clip in clips for window in clip.split(tower.n_window_infer // CHUNK_FRAMES * CHUNK_TOKENS)]
    lengths = torch.tensor([len(window) for window in windows], device=windows[0].device)
    hidden = nn.utils.rnn.pad_sequence(windows, batch_first=True)
    seen = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[:, None, None]
    mask = None if bool(seen.all()) else seen
    for layer in tower.layers:
        hidden = run_encoder_layer(layer, hidden, mask)
    flat = torch.cat([row[: len(window)] for row, window in zip(hidden, windows, strict=True)])
    return list(tower.ln_post(flat).split([len(clip) for clip in clips]))


def _convolved(tower: Any, log_mel: Tensor) -> Tensor:
    """One clip `(mels, frames)` through the convolutions second by second, positions added: `(audio_seq, dim)`."""
    frames = log_mel.shape[1]
    padded = pad(log_mel, (0, -frames % CHUNK_FRAMES if frames > CHUNK_FRAMES else 0))
    chunks = torch.stack(padded.split(min(frames, CHUNK_FRAMES), 1))[:, None].to(tower.conv2d1.weight)
    pieces = []
    for some in chunks.split(tower.conv_chunksize):
        maps = gelu(tower.conv2d3(gelu(tower.conv2d2(gelu(tower.conv2d1(some))))))  # (chunks, channels, bins, time)
        pieces.append(tower.conv_out(maps.permute(0, 3, 1, 2).flatten(2)))
    states = torch.cat(pieces)
    states = states + tower.positional_embedding.positional_embedding[: states.shape[1]].to(states)
    return states.flatten(0, 1)[: token_count(frames)]


def project_audio(module: Any, heard: Sequence[Tensor]) -> list[Tensor]:
    """The two projections at the encoder's end, `(audio_seq, dim)` a clip."""
    tower = module.model.audio_tower
    return [tower.proj2(tower.act(tower.proj1(clip.to(tower.proj1.weight)))) for clip in heard]


ROW = Row(
    family="qwen3_omni",
    what="a Qwen3-Omni model",
    hub="Qwen/Qwen3-Omni-30B-A3B-Instruct",
    model_class="Qwen3OmniMoeThinkerForConditionalGeneration",
    types={"qwen3_omni_moe": "thinker", "qwen3_omni_moe_thinker": ""},
    mark="<|audio_pad|>",
    end_marks=("<|im_end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=tuple(
        f"model.audio_tower.{part}." for part in ("layers", "conv2d1", "conv2d2", "conv2d3", "conv_out", "ln_post")
    ),
    connector=("model.audio_tower.proj1.", "model.audio_tower.proj2."),
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
    unread=("talker.", "code2wav."),
    left_out=("model.visual.",),
    wrap={
        "model_type": "qwen3_omni_moe",
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "enable_audio_output": False,
    },
)
