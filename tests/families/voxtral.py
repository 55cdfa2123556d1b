"""Voxtral at test size: windows of 0.96 s, four states per token; the reference is transformers' own class."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor

from earwise.models.families.voxtral import ARCHITECTURE
from earwise.types import Waveform
from families.tiny import Tiny
from families.transformers_audio import (
    MELS,
    RATE,
    TEXT_CONFIG,
    Reference,
    build_tiny,
    randomize_by_layer,
    special_byte_tokenizer,
)

WINDOW_FRAMES = 96
AUDIO_CONFIG = {
    "num_mel_bins": MELS,
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_source_positions": WINDOW_FRAMES // 2,
}
SPECIAL = ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[BEGIN_AUDIO]", "[AUDIO]")


def reference_model(seed: int = 0) -> VoxtralForConditionalGeneration:
    """transformers' class with its own attention."""
    text = TEXT_CONFIG | {"model_type": "llama", "head_dim": 8, "rope_theta": 1e4}
    config = VoxtralConfig(audio_config=AUDIO_CONFIG, text_config=text, audio_token_id=SPECIAL.index("[AUDIO]"))
    config._attn_implementation = "eager"
    module = VoxtralForConditionalGeneration(config).eval()
    randomize_by_layer(module, seed)
    return module


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side; the suite's clips take one window or two."""
    extractor = WhisperFeatureExtractor(feature_size=MELS)

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        clips = []
        for waveform in waveforms:
            mel = extractor(
                waveform, sampling_rate=RATE, padding=True, truncation=False, pad_to_multiple_of=WINDOW_FRAMES * 160,
                return_tensors="pt",
            ).input_features  # fmt: skip
            clips.append(mel.reshape(MELS, -1, WINDOW_FRAMES).transpose(0, 1))
        return {"input_features": torch.cat(clips)}

    tokenizer = special_byte_tokenizer(SPECIAL, {})
    return build_tiny(ARCHITECTURE, reference_model(seed), tokenizer, extractor, Reference(inputs), max_s=5.0)
