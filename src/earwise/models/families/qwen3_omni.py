"""Qwen3-Omni's thinker (30B-A3B): the part that takes audio and text and writes text.

The encoder convolves each second of audio by itself (13 tokens), then attends within windows of eight seconds; only
real frames are encoded. The three convolutions in two dimensions are not masked, so the states of a clip's last,
shorter second depend a little on how far it is padded. Here it is padded to a whole second if the clip has one, and not
at all if the clip is shorter than that, which is what the class computes for a clip by itself (in a conversation with
longer clips it pads a short clip to their length). Positions are one per token on all three axes. The decoder is a
mixture of experts that routes token by token, so a forest does not change it; no stage here trains with the
load-balancing loss. Visual tower, talker and vocoder are treated as in `qwen25_omni.py`.

Source: transformers 5 `models/qwen3_omni_moe`; Qwen3-Omni (arXiv:2509.17765).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models import registry
from earwise.models.families import transformers_audio
from earwise.models.families.qwen25_omni import feature_extractor
from earwise.models.families.transformers_audio import Architecture
from earwise.models.parts import mel
from earwise.models.parts.whisper import run_encoder_layer
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

CHUNK_TOKENS = 13
CHUNK_FRAMES = 100
"""Mel frames of a chunk. The class counts 13 tokens per chunk whatever its configuration says, which is right for
chunks of 100 frames only."""

# The released chat template adds no system message.
TEMPLATE = ChatTemplate("qwen3-omni", "<|im_start|>{role}\n", "<|im_end|>", "<|audio_start|>", "<|audio_end|>")


def token_count(frames: int) -> int:
    """Audio tokens of `frames` mel frames: 13 per whole second, and for the remainder what three halvings leave.

    >>> [token_count(frames) for frames in (1, 8, 9, 99, 100, 101, 3000)]
    [1, 1, 2, 13, 13, 14, 390]
    """
    chunks, remainder = divmod(frames, CHUNK_FRAMES)
    for _ in range(3):
        remainder = (remainder + 1) // 2
    return CHUNK_TOKENS * chunks + remainder


def audio_spec(config: Any, extractor: WhisperFeatureExtractor) -> AudioSpec:
    """13 tokens a second, clips as long as the features' window.

    Raises:
        ModelError: if the features are not those that the encoder was made for.
    """
    return mel.audio_spec(extractor, config.audio_config.num_mel_bins, "qwen3_omni", 13.0)


def audio_tokens(config: Any, extractor: WhisperFeatureExtractor, samples: int) -> int:
    """Audio tokens (80 ms each) of a clip."""
    return token_count(mel.frame_count(samples))


def encode_audio(module: Any, extractor: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip after the norm, `(audio_seq, encoder dim)`: the input of the class's two
    projections."""
    tower = module.model.audio_tower
    clips = [_convolve(tower, mel.unpadded_log_mel(waveform, extractor)) for waveform in waveforms]
    window_tokens = tower.n_window_infer // CHUNK_FRAMES * CHUNK_TOKENS
    windows = [window for clip in clips for window in clip.split(window_tokens)]
    lengths = torch.tensor([len(window) for window in windows], device=windows[0].device)
    hidden = nn.utils.rnn.pad_sequence(windows, batch_first=True)
    visible = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[:, None, None]
    mask = None if bool(visible.all()) else visible
    for layer in tower.layers:
        hidden = run_encoder_layer(layer, hidden, mask)
    flat = torch.cat([row[: len(window)] for row, window in zip(hidden, windows, strict=True)])
    return list(tower.ln_post(flat).split([len(clip) for clip in clips]))


def _convolve(tower: Any, log_mel: Tensor) -> Tensor:
    """One clip `(mels, frames)` through the convolutions second by second, positions added: `(audio_seq, dim)`."""
    frames = log_mel.shape[1]
    padded = pad(log_mel, (0, -frames % CHUNK_FRAMES if frames > CHUNK_FRAMES else 0))
    chunks = torch.stack(padded.split(min(frames, CHUNK_FRAMES), 1))[:, None].to(tower.conv2d1.weight)
    states = []
    for batch in chunks.split(tower.conv_chunksize):
        maps = gelu(tower.conv2d3(gelu(tower.conv2d2(gelu(tower.conv2d1(batch))))))  # (chunks, channels, bins, time)
        states.append(tower.conv_out(maps.permute(0, 3, 1, 2).flatten(2)))
    joined = torch.cat(states)
    joined = joined + tower.positional_embedding.positional_embedding[: joined.shape[1]].to(joined)
    return joined.flatten(0, 1)[: token_count(frames)]


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """The two projections at the encoder's end, `(audio_seq, dim)` per clip."""
    tower = module.model.audio_tower
    return [tower.proj2(tower.act(tower.proj1(clip.to(tower.proj1.weight)))) for clip in encoder_states]


ARCHITECTURE = Architecture(
    family=registry.get("qwen3_omni"),
    label="a Qwen3-Omni model",
    model_class="Qwen3OmniMoeThinkerForConditionalGeneration",
    placeholder="<|audio_pad|>",
    end_tokens=("<|im_end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=tuple(
        f"model.audio_tower.{part}." for part in ("layers", "conv2d1", "conv2d2", "conv2d3", "conv_out", "ln_post")
    ),
    connector=("model.audio_tower.proj1.", "model.audio_tower.proj2."),
    decoder=("model.language_model.", "lm_head."),
    language_model="model.language_model",
    placeholder_id=lambda config: config.audio_token_id,
    feature_extractor=feature_extractor,
    audio_spec=audio_spec,
    audio_tokens=audio_tokens,
    encode_audio=encode_audio,
    project_audio=project_audio,
    trims_padding=True,
    masks_padding=True,
    unread_prefixes=("talker.", "code2wav."),
    removed_modules=("model.visual.",),
    published_config={
        "model_type": "qwen3_omni_moe",
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "enable_audio_output": False,
    },
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
