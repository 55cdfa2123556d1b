"""Audio Flamingo 3 at test size; the reference is transformers' own class on windows of one second."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration

from builders import MELS, SPECIAL, feature_extractor, randomize_weights
from earwise.models.families.audio_flamingo3 import ARCHITECTURE
from earwise.models.families.transformers_audio import TransformersAudioLM, from_parts
from earwise.types import Waveform
from families.qwen3_omni import rename_special_tokens
from families.qwen25_omni import TEXT_CONFIG
from families.tiny import Tiny
from families.transformers_audio import FULL_WINDOW, RATE, save_and_load

WINDOW_SAMPLES = RATE
AUDIO_CONFIG = {
    "num_mel_bins": MELS,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_size": 24,
    "max_source_positions": 50,
}
tokenizer = partial(rename_special_tokens, placeholder="<sound>")


def reference_model(seed: int = 0) -> AudioFlamingo3ForConditionalGeneration:
    """transformers' class with windows of one second."""
    text = {key: value for key, value in TEXT_CONFIG.items() if key != "rope_parameters"} | {"model_type": "qwen2"}
    placeholder_id = SPECIAL.index("<|AUDIO|>")
    config = AudioFlamingo3Config(audio_config=AUDIO_CONFIG, text_config=text, audio_token_id=placeholder_id)
    config._attn_implementation = "eager"
    model = AudioFlamingo3ForConditionalGeneration(config).eval()
    randomize_weights(model, seed)
    return model


def our_model(module: AudioFlamingo3ForConditionalGeneration) -> TransformersAudioLM:
    """The same weights behind the contract; `module` stays unchanged."""
    extractor = feature_extractor(window_s=1)
    return from_parts(ARCHITECTURE, copy.deepcopy(module), tokenizer(), extractor, name="tiny")


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side, windows of one second, clips of up to twenty windows."""
    module = reference_model(seed)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        windows = [
            waveform[start : start + WINDOW_SAMPLES]
            for waveform in waveforms
            for start in range(0, len(waveform), WINDOW_SAMPLES)
        ]
        inputs = {"input_ids": torch.tensor([ids])}
        if windows:
            features = feature_extractor(window_s=1)(windows, **FULL_WINDOW)
            inputs |= {"input_features": features.input_features, "input_features_mask": features.attention_mask}
        logits: Tensor = module(**inputs).logits[0]
        return logits

    return Tiny(our_model(module), reference, partial(save_and_load, ARCHITECTURE), max_s=4.0)
