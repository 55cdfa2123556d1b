"""Granite Speech at test size: attention blocks of 160 ms, the placeholder's id beyond the embedding table; the
reference is transformers' own class, whose logits are divided as in Granite's text model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GraniteSpeechConfig, GraniteSpeechForConditionalGeneration

from earwise.models.families.granite_speech import ARCHITECTURE, LogMel
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

ENCODER_CONFIG = {
    "input_dim": 2 * MELS,
    "num_layers": 2,
    "hidden_dim": 24,
    "feedforward_mult": 2,
    "num_heads": 2,
    "dim_head": 12,
    "output_dim": 10,
    "context_size": 8,
    "max_pos_emb": 16,
    "conv_kernel_size": 5,
}
QFORMER_CONFIG = {
    "model_type": "blip_2_qformer",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_hidden_size": 24,
    "cross_attention_frequency": 1,
}
LOGITS_SCALING = 2.0
GRANITE_TEXT_CONFIG = TEXT_CONFIG | {
    "model_type": "granite",
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": LOGITS_SCALING,
}
SPECIAL = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")


def reference_model(seed: int = 0) -> GraniteSpeechForConditionalGeneration:
    """transformers' class with its own attention."""
    config = GraniteSpeechConfig(
        encoder_config=ENCODER_CONFIG, projector_config=QFORMER_CONFIG, text_config=GRANITE_TEXT_CONFIG,
        audio_token_index=VOCAB, has_lora_adapter=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = GraniteSpeechForConditionalGeneration(config).eval()
    randomize_by_layer(module, seed)
    return module


def tokenizer() -> Tokenizer:
    """A byte tokenizer with the placeholder after all other tokens."""
    return special_byte_tokenizer(SPECIAL, {"<|audio|>": VOCAB})


def tiny(seed: int = 0) -> Tiny:
    """Two layers in each part."""
    extractor = LogMel(n_mels=MELS)

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        features = [extractor(waveform) for waveform in waveforms]
        return {"input_features": nn.utils.rnn.pad_sequence(features, batch_first=True)}

    def one_by_one(module: Any, waveforms: Sequence[Waveform]) -> AbstractContextManager[Any]:
        encode = module.model.get_audio_features

        def encode_each(features: Tensor, **_: Any) -> SimpleNamespace:
            clips = [
                encode(clip[None, : len(extractor(waveform))], return_dict=True).pooler_output[0]
                for clip, waveform in zip(features, waveforms, strict=True)
            ]
            return SimpleNamespace(pooler_output=torch.cat(clips))

        return patch.object(module.model, "get_audio_features", encode_each)

    reference = Reference(inputs, one_by_one, LOGITS_SCALING)
    return build_tiny(ARCHITECTURE, reference_model(seed), tokenizer(), extractor, reference, max_s=4.0)
