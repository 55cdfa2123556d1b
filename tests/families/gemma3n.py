"""Gemma 3n at test size: two layers with keys and values of their own, two that share them, special tokens for audio
above the text vocabulary; the reference is transformers' own class."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import nn
from transformers import AutoModel, Gemma3nAudioFeatureExtractor, Gemma3nConfig, Gemma3nForConditionalGeneration
from transformers.models.gemma3n import modeling_gemma3n

from earwise.models.families import gemma3n
from earwise.types import Waveform
from families.tiny import Tiny
from families.transformers_audio import (
    MELS,
    TEXT_CONFIG,
    VOCAB,
    Reference,
    build_tiny,
    randomize_by_layer,
    special_byte_tokenizer,
)

AUDIO_CONFIG = {
    "vocab_size": 20,
    "vocab_offset": 280,
    "input_feat_size": MELS,
    "hidden_size": 32,
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 5,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "conf_conv_kernel_size": 3,
    "sscp_conv_channel_size": (4, 2),
}
GEMMA_TEXT_CONFIG = TEXT_CONFIG | {
    "vocab_size": 300,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "head_dim": 8,
    "sliding_window": 12,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "final_logit_softcapping": 5.0,
}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_audio>")
SPECIAL_ABOVE_TEXT = {"<end_of_audio>": 280, "<audio_soft_token>": 281}
AUDIO_TOKENS = 13
"""Audio tokens of every clip."""


def without_image_tower() -> AbstractContextManager[Any]:
    """Context in which transformers' class has an empty module for its image tower, whose own class needs timm."""

    def build(config: Any) -> nn.Module:
        return nn.Module() if config.model_type == "gemma3n_vision" else AutoModel.from_config(config)

    return patch.object(modeling_gemma3n, "AutoModel", SimpleNamespace(from_config=build))


def reference_model(seed: int = 0, **text: Any) -> Gemma3nForConditionalGeneration:
    """transformers' class with its own attention; `text` changes the text model's config."""
    config = Gemma3nConfig(
        audio_config=dict(AUDIO_CONFIG), text_config=GEMMA_TEXT_CONFIG | text,
        vision_config={"hidden_size": 8, "vocab_size": 8, "vocab_offset": VOCAB},
        audio_soft_tokens_per_image=AUDIO_TOKENS, audio_token_id=281, boa_token_id=5, eoa_token_id=280,
        image_token_id=279,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with without_image_tower():
        module = Gemma3nForConditionalGeneration(config).eval()
    randomize_by_layer(module, seed)
    return module


def tiny(seed: int = 0, **text: Any) -> Tiny:
    """Clips of up to 2 s; `text` changes the text model's config."""
    extractor = Gemma3nAudioFeatureExtractor(feature_size=MELS)
    features_of = partial(extractor, padding="longest", return_tensors="pt")

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        out = features_of(list(waveforms))
        return {"input_features": out.input_features, "input_features_mask": out.input_features_mask}

    def one_by_one(module: Any, waveforms: Sequence[Waveform]) -> AbstractContextManager[Any]:
        encode = module.model.get_audio_features

        def encode_each(*_: Any, **__: Any) -> SimpleNamespace:
            embeddings, padding = [], []
            for waveform in waveforms:
                features = features_of([waveform])
                out = encode(features.input_features, ~features.input_features_mask, return_dict=True)
                embeddings.append(out.pooler_output[0])
                padding.append(out.audio_mel_mask[0])
            return SimpleNamespace(
                pooler_output=nn.utils.rnn.pad_sequence(embeddings, batch_first=True),
                audio_mel_mask=nn.utils.rnn.pad_sequence(padding, batch_first=True, padding_value=True),
            )

        return patch.object(module.model, "get_audio_features", encode_each)

    module = reference_model(seed, **text)
    ours = gemma3n.Gemma3nForConditionalGeneration(copy.deepcopy(module.config))
    ours.load_state_dict(module.state_dict(), strict=False)
    tokenizer = special_byte_tokenizer(SPECIAL, SPECIAL_ABOVE_TEXT)
    reference = Reference(inputs, one_by_one)
    return build_tiny(gemma3n.ARCHITECTURE, module, tokenizer, extractor, reference, max_s=2.0, ours=ours)
