"""Gemma 4 at test size: layers with windows and without, two that share keys and values, wide heads in full attention;
the reference is transformers' own class."""

from collections.abc import Sequence
from typing import Any

from transformers import Gemma4AudioFeatureExtractor, Gemma4Config, Gemma4ForConditionalGeneration

from earwise.models.families.gemma4 import ARCHITECTURE
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
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [MELS, 4],
    "conv_kernel_size": 3,
    "attention_chunk_size": 4,
    "attention_context_left": 5,
    "output_proj_dims": 24,
}
VISION_CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "position_embedding_size": 8,
    "patch_size": 2,
}
GEMMA_TEXT_CONFIG = TEXT_CONFIG | {
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 12,
    "final_logit_softcapping": 5.0,
}
SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<|turn>",
    "<turn|>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
    "<|image|>",
    "<|video|>",
)


def reference_model(seed: int = 0, **text: Any) -> Gemma4ForConditionalGeneration:
    """transformers' class with its own attention; `text` changes the text model's config."""
    config = Gemma4Config(
        audio_config=dict(AUDIO_CONFIG), vision_config=dict(VISION_CONFIG), text_config=GEMMA_TEXT_CONFIG | text,
        audio_token_id=7, boa_token_id=5, eoa_token_index=6, image_token_id=8, video_token_id=9,
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = Gemma4ForConditionalGeneration(config).eval()
    randomize_by_layer(module, seed)
    return module


def tiny(seed: int = 0, **text: Any) -> Tiny:
    """Clips of up to 2 s; `text` changes the text model's config."""
    extractor = Gemma4AudioFeatureExtractor(feature_size=MELS)

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        out = extractor(list(waveforms), padding="longest", return_tensors="pt")
        return {"input_features": out.input_features, "input_features_mask": out.input_features_mask}

    tokenizer = special_byte_tokenizer(SPECIAL, {})
    module = reference_model(seed, **text)
    return build_tiny(ARCHITECTURE, module, tokenizer, extractor, Reference(inputs), max_s=2.0)
