"""Phi-4-multimodal at test size: rotary positions on three quarters of a head of 8, LongRoPE up to 700 tokens; the
reference is transformers' own class."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import Phi4MultimodalConfig, Phi4MultimodalFeatureExtractor, Phi4MultimodalForCausalLM

from earwise.models.families.phi4_multimodal import ARCHITECTURE
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

MAX_SEQUENCE = 700
AUDIO_CONFIG = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_blocks": 2,
    "num_attention_heads": 2,
    "ext_pw_out_channel": 24,
    "depthwise_separable_out_channel": 24,
    "input_size": MELS,
    "nemo_conv_channels": 8,
    "bias_max_distance": 50,
}
VISION_CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "crop_size": 28,
}
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "original_max_position_embeddings": MAX_SEQUENCE,
}
SPECIAL = ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|audio|>", "<|image|>")


def reference_model(seed: int = 0) -> Phi4MultimodalForCausalLM:
    """transformers' class, image tower included, with its own attention."""
    config = Phi4MultimodalConfig(
        audio_config=AUDIO_CONFIG | {"audio_token_id": SPECIAL.index("<|audio|>")},
        vision_config=VISION_CONFIG | {"image_token_id": SPECIAL.index("<|image|>")},
        rope_parameters=dict(ROPE), original_max_position_embeddings=MAX_SEQUENCE, **TEXT_CONFIG,
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = Phi4MultimodalForCausalLM(config).eval()
    randomize_by_layer(module, seed)
    return module


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side."""
    extractor = Phi4MultimodalFeatureExtractor(feature_size=MELS)

    def features_of(waveform: Waveform) -> Any:
        return extractor(waveform, sampling_rate=RATE, return_tensors="pt")

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        clips = [features_of(waveform) for waveform in waveforms]
        mels = [clip.audio_input_features[0] for clip in clips]
        return {
            "audio_input_features": nn.utils.rnn.pad_sequence(mels, batch_first=True),
            "audio_embed_sizes": torch.cat([clip.audio_embed_sizes for clip in clips]),
        }

    def one_by_one(module: Any, waveforms: Sequence[Waveform]) -> AbstractContextManager[Any]:
        encoder = module.model.embed_tokens_extend.audio_embed.encoder
        encode = encoder.forward

        def encode_each(features: Tensor, mask: Tensor | None) -> Tensor:
            lengths = [features_of(waveform).audio_input_features.shape[1] for waveform in waveforms]
            clips = [encode(clip[None, :length], None)[0] for clip, length in zip(features, lengths, strict=True)]
            return nn.utils.rnn.pad_sequence(clips, batch_first=True)

        return patch.object(encoder, "forward", encode_each)

    tokenizer = special_byte_tokenizer(SPECIAL, {})
    reference = Reference(inputs, one_by_one)
    return build_tiny(ARCHITECTURE, reference_model(seed), tokenizer, extractor, reference, max_s=4.0)
