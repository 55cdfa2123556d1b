"""Voxtral: Whisper's encoder over whole windows of 30 s, four states per token, and a Mistral decoder (a Llama to
transformers).

A clip is padded with silence to whole windows, and the silence is encoded too: 375 tokens a window, however short the
clip. Nothing masks it, so nothing may be trimmed. The spectrogram's dynamic range is taken over all windows of a clip.
The published checkpoints contain their tokenizer as tekken.json; here a tokenizer.json made from it is read.

Source: Voxtral (arXiv:2507.13264); transformers 5 `models/voxtral`; chat format as mistral-common's version 7 writes
    it.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models import registry
from earwise.models.families import transformers_audio
from earwise.models.families.transformers_audio import Architecture
from earwise.models.parts import mel
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

TEMPLATE = ChatTemplate(
    "voxtral", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "", turn_separator="", conversation_start="<s>",
    role_markers={"system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "assistant": ("", "</s>")},
)  # fmt: skip
MAX_CLIP_S = 40 * 60.0
"""Longest recording that the model card names for questions, seconds."""


def window_samples(config: Any) -> int:
    """Samples of one encoder window, 30 s as released."""
    return 2 * config.audio_config.max_source_positions * HOP_SAMPLES


def window_tokens(config: Any) -> int:
    """Audio tokens of one window: encoder states are joined until they are as wide as the feed-forward layer."""
    audio = config.audio_config
    return audio.max_source_positions * audio.hidden_size // audio.intermediate_size


def features(extractor: WhisperFeatureExtractor, waveform: Waveform, window: int) -> Tensor:
    """Log-mel of a clip padded to whole windows of `window` samples, `(windows, mels, frames)`."""
    padded = np.pad(np.asarray(waveform, np.float32), (0, -len(waveform) % window))
    out = extractor(padded, sampling_rate=extractor.sampling_rate, padding=False, truncation=False, return_tensors="pt")
    return torch.as_tensor(out.input_features[0]).unflatten(1, (-1, window // HOP_SAMPLES)).transpose(0, 1)


def feature_extractor(folder: Path | None, config: Any) -> WhisperFeatureExtractor:
    """The checkpoint's feature extractor; Whisper's own if the folder has none."""
    return mel.load_feature_extractor(folder, config.audio_config.num_mel_bins)


def audio_spec(config: Any, extractor: WhisperFeatureExtractor) -> AudioSpec:
    """12.5 tokens a second as released; 40 minutes, or as many whole windows as the decoder has positions for."""
    rate = extractor.sampling_rate
    tokens_per_s = window_tokens(config) * rate / window_samples(config)
    windows = config.text_config.max_position_embeddings // window_tokens(config)
    return AudioSpec(rate, min(MAX_CLIP_S, windows * window_samples(config) / rate), tokens_per_s)


def audio_tokens(config: Any, extractor: WhisperFeatureExtractor, samples: int) -> int:
    """Audio tokens of whole windows."""
    return -(-samples // window_samples(config)) * window_tokens(config)


def encode_audio(module: Any, extractor: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip, four joined to one, `(audio_seq, 4 * encoder dim)`."""
    config = module.config
    clips = [features(extractor, waveform, window_samples(config)) for waveform in waveforms]
    states = module.model.audio_tower(torch.cat(clips)).last_hidden_state
    joined = states.reshape(len(states), window_tokens(config), -1)
    return [windows.flatten(0, 1) for windows in joined.split([len(clip) for clip in clips])]


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """The projector, `(audio_seq, dim)` per clip."""
    projector = module.model.multi_modal_projector
    return [projector(clip.to(projector.linear_1.weight)) for clip in encoder_states]


ARCHITECTURE = Architecture(
    family=registry.get("voxtral"),
    label="a Voxtral model",
    model_class="VoxtralForConditionalGeneration",
    placeholder="[AUDIO]",
    end_tokens=("</s>",),
    template=TEMPLATE,
    encoder=("model.audio_tower.",),
    connector=("model.multi_modal_projector.",),
    decoder=("model.language_model.", "lm_head."),
    language_model="model.language_model",
    placeholder_id=lambda config: config.audio_token_id,
    feature_extractor=feature_extractor,
    audio_spec=audio_spec,
    audio_tokens=audio_tokens,
    encode_audio=encode_audio,
    project_audio=project_audio,
    trims_padding=False,
    masks_padding=False,
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
