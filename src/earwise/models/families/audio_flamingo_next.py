"""Audio Flamingo Next: Audio Flamingo 3 with rotary time embeddings, and clips of up to thirty minutes.

Its published checkpoint is read by transformers' class for Music Flamingo, so that Music Flamingo's checkpoints of 2026
load as well. They differ in the system line, which a row may bring itself.

Between encoder and projector every state is rotated by an angle that grows with its time in the clip. The rotation has
no parameters; it is part of what `encode_audio` returns.

Source: Audio Flamingo Next (arXiv:2604.10905); transformers 5 `models/musicflamingo` and its conversion script (chat
format, longest clip).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.models.musicflamingo.modeling_musicflamingo import apply_rotary_time_emb

from earwise.audio import AudioSpec
from earwise.models import registry
from earwise.models.families import audio_flamingo3, transformers_audio
from earwise.models.families.qwen2_audio import token_count, window_frames
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

MAX_WINDOWS = 60
"""Windows of 30 s that the released processor takes of one clip; it cuts off what follows them."""
SYSTEM_MESSAGE = (
    "You are Audio Flamingo-Next, a multimodal assistant for language and audio. On each turn you receive an optional "
    "audio clip which may contain speech, music, or ambient sounds and optional text, you will receive at least one or "
    "both; use your world knowledge and reasoning to help the user with any task. Interpret the entirety of the "
    "content of any input audio—regardless of whether the user calls it audio, speech, music, or sound."
)
"""The published checkpoint was trained under this line; its own chat template writes it."""
TEMPLATE = ChatTemplate(
    "audio-flamingo-next", "<|im_start|>{role}\n", "<|im_end|>", "<|sound_bos|>", "<|sound_eos|>", SYSTEM_MESSAGE
)


def audio_spec(config: Any, extractor: WhisperFeatureExtractor) -> AudioSpec:
    """25 tokens a second, clips of up to sixty windows; see `audio_flamingo3.audio_spec`."""
    spec = audio_flamingo3.audio_spec(config, extractor)
    return replace(spec, max_s=spec.max_s / audio_flamingo3.MAX_WINDOWS * MAX_WINDOWS)


def encode_audio(module: Any, extractor: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip after pooling, norm and rotation by their time, `(audio_seq, encoder dim)`."""
    encoder_states = audio_flamingo3.encode_audio(module, extractor, waveforms)
    window = window_frames(module.config)
    count = token_count(window)
    step_s = window * HOP_SAMPLES / extractor.sampling_rate / count
    rotated = []
    for states in encoder_states:
        windows = -(-len(states) // count)
        offsets = torch.arange(count, device=states.device, dtype=torch.float32) * step_s
        starts = torch.arange(windows, device=states.device)[:, None] * count * step_s
        cos, sin = (
            table.flatten(0, 1)[: len(states)] for table in module.model.pos_emb(starts + offsets, seq_len=count)
        )
        rotated.append(apply_rotary_time_emb(states, cos, sin))
    return rotated


ARCHITECTURE = replace(
    audio_flamingo3.ARCHITECTURE,
    family=registry.get("audio_flamingo_next"),
    label="an Audio Flamingo Next model",
    model_class="MusicFlamingoForConditionalGeneration",
    template=TEMPLATE,
    audio_spec=audio_spec,
    encode_audio=encode_audio,
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
