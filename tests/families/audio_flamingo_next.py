"""Audio Flamingo Next at test size; the reference is transformers' own class on windows of one second."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import MusicFlamingoConfig, MusicFlamingoForConditionalGeneration

from builders import SPECIAL, feature_extractor, randomize_weights
from earwise.models.families.audio_flamingo_next import ARCHITECTURE
from earwise.models.families.transformers_audio import TransformersAudioLM, from_parts
from earwise.types import Waveform
from families.audio_flamingo3 import AUDIO_CONFIG, WINDOW_SAMPLES
from families.qwen3_omni import rename_special_tokens
from families.qwen25_omni import TEXT_CONFIG
from families.tiny import Tiny
from families.transformers_audio import FULL_WINDOW, save_and_load

tokenizer = partial(rename_special_tokens, placeholder="<sound>", start="<|sound_bos|>", end="<|sound_eos|>")


def reference_model(seed: int = 0) -> MusicFlamingoForConditionalGeneration:
    """transformers' class with windows of one second; all but one of six channels of a state are rotated."""
    text = {key: value for key, value in TEXT_CONFIG.items() if key != "rope_parameters"} | {"model_type": "qwen2"}
    audio = AUDIO_CONFIG | {"model_type": "audioflamingo3_encoder"}
    rope = {"rope_type": "default", "rope_theta": 60.0, "partial_rotary_factor": 0.4}
    config = MusicFlamingoConfig(
        audio_config=audio, text_config=text, audio_token_id=SPECIAL.index("<|AUDIO|>"), rope_parameters=rope
    )
    config._attn_implementation = "eager"
    model = MusicFlamingoForConditionalGeneration(config).eval()
    randomize_weights(model, seed)
    return model


def our_model(module: MusicFlamingoForConditionalGeneration) -> TransformersAudioLM:
    """The same weights behind the contract; `module` stays unchanged."""
    extractor = feature_extractor(window_s=1)
    return from_parts(ARCHITECTURE, copy.deepcopy(module), tokenizer(), extractor, name="tiny")


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side, windows of one second, clips of up to sixty windows."""
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
