"""Qwen2.5-Omni's thinker at test size; the reference is transformers' own class on clips padded to the window."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from builders import MELS, SPECIAL, WINDOW_S, byte_tokenizer, feature_extractor, hf_inputs, randomize_weights
from earwise.forest import TokenPath
from earwise.models.families.qwen25_omni import ARCHITECTURE
from earwise.models.families.transformers_audio import TransformersAudioLM, from_parts
from earwise.types import Waveform
from families.qwen2_audio import clip_of_token
from families.tiny import Tiny
from families.transformers_audio import save_and_load

AUDIO_CONFIG = {
    "num_mel_bins": MELS,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "d_model": 24,
    "output_dim": 32,
    "n_window": 15,  # blocks of 300 ms: 15 states, an odd number, so that pooling pairs straddle blocks
    "max_source_positions": 50,
}
VISION_CONFIG = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "fullatt_block_indexes": [0],
}
TEXT_CONFIG = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    "tie_word_embeddings": False,
    "eos_token_id": SPECIAL.index("<|im_end|>"),
    "pad_token_id": SPECIAL.index("<|endoftext|>"),
}
SPECIAL_IDS = {
    "audio_token_index": SPECIAL.index("<|AUDIO|>"),
    "audio_start_token_id": SPECIAL.index("<|audio_bos|>"),
    "audio_end_token_id": SPECIAL.index("<|audio_eos|>"),
    "image_token_index": 268,
    "video_token_index": 269,
    "vision_start_token_id": 270,
}


def reference_model(seed: int = 0, **text: object) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """transformers' class, visual tower included, with its own attention; `text` changes the text model's config."""
    config = Qwen2_5OmniThinkerConfig(
        audio_config=AUDIO_CONFIG, vision_config=VISION_CONFIG, text_config=TEXT_CONFIG | text, **SPECIAL_IDS
    )
    config._attn_implementation = "eager"
    model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    randomize_weights(model, seed)
    return model


def our_model(module: Qwen2_5OmniThinkerForConditionalGeneration) -> TransformersAudioLM:
    """The same weights behind the contract; `module` stays unchanged."""
    return from_parts(ARCHITECTURE, copy.deepcopy(module), byte_tokenizer(), feature_extractor(), name="tiny")


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side, blocks of 300 ms, clips of up to 2 s."""
    module = reference_model(seed)
    model = our_model(module)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        path = TokenPath(tuple(ids), (False,) * len(ids), clip_of_token(ids, model.placeholder_id))
        logits: Tensor = module(**hf_inputs(path, dict(enumerate(waveforms)))).logits[0]
        return logits

    return Tiny(model, reference, partial(save_and_load, ARCHITECTURE), max_s=float(WINDOW_S))
