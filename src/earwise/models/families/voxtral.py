"""Voxtral: Whisper's encoder over whole windows of 30 s, four states to a token, a Mistral decoder (a Llama to
transformers).

A clip is padded with silence to whole windows and the silence is heard too: 375 tokens a window, however short the
clip; nothing masks it, so nothing may be trimmed. The spectrogram's dynamic range is taken over all windows of a clip.
The released checkpoints keep their tokenizer as tekken.json; a tokenizer.json made from it is read here.

Source: arXiv:2507.13264; transformers 5 `models/voxtral`; chat format as mistral-common's version 7 writes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models.families.native import Row
from earwise.models.parts import mel
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

TEMPLATE = ChatTemplate(
    "voxtral", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "", turn_separator="", conversation_start="<s>",
    role_markers={"system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "assistant": ("", "</s>")},
)  # fmt: skip
LONGEST_S = 40 * 60.0
"""What the model card gives for questions about a recording."""


def window_samples(config: Any) -> int:
    """Samples of one encoder window, 30 s as released."""
    return 2 * config.audio_config.max_source_positions * HOP_SAMPLES


def window_tokens(config: Any) -> int:
    """Audio tokens of one window: encoder states are joined until they are as wide as the feed-forward layer."""
    audio = config.audio_config
    return audio.max_source_positions * audio.hidden_size // audio.intermediate_size


def features(extractor: WhisperFeatureExtractor, wave: Waveform, window: int) -> Tensor:
    """Log-mel of a clip filled up to whole windows of `window` samples, `(windows, mels, frames)`."""
    filled = np.pad(np.asarray(wave, np.float32), (0, -len(wave) % window))
    out = extractor(filled, sampling_rate=extractor.sampling_rate, padding=False, truncation=False, return_tensors="pt")
    return torch.as_tensor(out.input_features[0]).unflatten(1, (-1, window // HOP_SAMPLES)).transpose(0, 1)


def _extractor(folder: Path | None, config: Any) -> WhisperFeatureExtractor:
    return mel.load_feature_extractor(folder, config.audio_config.num_mel_bins)


def _spec(config: Any, extractor: WhisperFeatureExtractor) -> AudioSpec:
    rate = extractor.sampling_rate
    per_s = window_tokens(config) * rate / window_samples(config)
    windows = config.text_config.max_position_embeddings // window_tokens(config)
    return AudioSpec(rate, min(LONGEST_S, windows * window_samples(config) / rate), per_s)


def _tokens(config: Any, extractor: WhisperFeatureExtractor, samples: int) -> int:
    return -(-samples // window_samples(config)) * window_tokens(config)


def _listen(module: Any, extractor: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    config = module.config
    clips = [features(extractor, wave, window_samples(config)) for wave in waveforms]
    states = module.model.audio_tower(torch.cat(clips)).last_hidden_state
    joined = states.reshape(len(states), window_tokens(config), -1)
    return [part.flatten(0, 1) for part in joined.split([len(clip) for clip in clips])]


def _connect(module: Any, heard: Sequence[Tensor]) -> list[Tensor]:
    projector = module.model.multi_modal_projector
    return [projector(clip.to(projector.linear_1.weight)) for clip in heard]


ROW = Row(
    family="voxtral",
    what="a Voxtral model",
    hub="mistralai/Voxtral-Mini-3B-2507",
    model_class="VoxtralForConditionalGeneration",
    types={"voxtral": ""},
    mark="[AUDIO]",
    end_marks=("</s>",),
    template=TEMPLATE,
    encoder=("model.audio_tower.",),
    connector=("model.multi_modal_projector.",),
    decoder=("model.language_model.", "lm_head."),
    language="model.language_model",
    placeholder_id=lambda config: config.audio_token_id,
    extractor=_extractor,
    spec=_spec,
    tokens=_tokens,
    encode_audio=_listen,
    project_audio=_connect,
    trims=False,
    masks=False,
)
