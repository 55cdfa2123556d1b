"""Qwen2.5-Omni's thinker at test size; the reference is transformers' own class on clips padded to the window."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from builders import MELS, SPECIAL, WINDOW_S, byte_tokenizer, feature_extractor, fill, plain_inputs
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.families import native
from earwise.models.families.native import Native
from earwise.models.families.qwen25_omni import ROW, load
from earwise.types import Waveform
from families.qwen2_audio import runs
from families.tiny import Tiny

AUDIO = {
    "num_mel_bins": MELS,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "d_model": 24,
    "output_dim": 32,
    "n_window": 15,  # blocks of 300 ms: 15 states, an odd number, so that pooling pairs straddle blocks
    "max_source_positions": 50,
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "fullatt_block_indexes": [0],
}
TEXT = {
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
MARKS = {
    "audio_token_index": SPECIAL.index("<|AUDIO|>"),
    "audio_start_token_id": SPECIAL.index("<|audio_bos|>"),
    "audio_end_token_id": SPECIAL.index("<|audio_eos|>"),
    "image_token_index": 268,
    "video_token_index": 269,
    "vision_start_token_id": 270,
}


def plain(seed: int = 0, **text: object) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """transformers' class, visual tower included, with an attention of its own."""
    config = Qwen2_5OmniThinkerConfig(audio_config=AUDIO, vision_config=VISION, text_config=TEXT | text, **MARKS)
    config._attn_implementation = "eager"
    model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    fill(model, seed)
    return model


def thinker(module: Qwen2_5OmniThinkerForConditionalGeneration) -> Native:
    """The same weights behind the contract; `module` stays as it is."""
    return native.from_parts(ROW, copy.deepcopy(module), byte_tokenizer(), feature_extractor(), name="tiny")


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side, blocks of 300 ms, hears 2 s."""
    module = plain(seed)
    model = thinker(module)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        path = TokenPath(tuple(ids), (False,) * len(ids), runs(ids, model.placeholder_id))
        logits: Tensor = module(**plain_inputs(path, dict(enumerate(waveforms)))).logits[0]
        return logits

    def reload(changed: AudioLM, folder: Path) -> AudioLM:
        changed.save(folder)
        return load(folder)

    return Tiny(model, reference, reload, max_s=float(WINDOW_S))
