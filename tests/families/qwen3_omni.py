"""Qwen3-Omni's thinker at test size; the reference is transformers' own class, given one clip at a time."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

from builders import WINDOW_S, byte_tokenizer, feature_extractor, randomize_weights
from earwise.models.families.qwen3_omni import ARCHITECTURE
from earwise.models.families.transformers_audio import TransformersAudioLM, from_parts
from earwise.types import Waveform
from families.qwen25_omni import AUDIO_CONFIG, SPECIAL_IDS, TEXT_CONFIG, VISION_CONFIG
from families.tiny import Tiny
from families.transformers_audio import FULL_WINDOW, run_starts, save_and_load

AUDIO = AUDIO_CONFIG | {"n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 8}
VISION = {
    key: value for key, value in VISION_CONFIG.items() if key != "fullatt_block_indexes"
} | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
TEXT = TEXT_CONFIG | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}


def rename_special_tokens(**names: str) -> Tokenizer:
    """The byte tokenizer with other names for its audio placeholder, start and end."""
    defaults = {"placeholder": "<|AUDIO|>", "start": "<|audio_bos|>", "end": "<|audio_eos|>"}
    text = byte_tokenizer().to_str()
    for key, name in names.items():
        text = text.replace(defaults[key], name)
    return Tokenizer.from_str(text)


def tokenizer() -> Tokenizer:
    """The byte tokenizer with Qwen3-Omni's special tokens."""
    return rename_special_tokens(placeholder="<|audio_pad|>", start="<|audio_start|>", end="<|audio_end|>")


def reference_model(seed: int = 0) -> Qwen3OmniMoeThinkerForConditionalGeneration:
    """transformers' class, visual tower included; four experts, two of which are active per token."""
    special_ids = {key.replace("_index", "_id"): value for key, value in SPECIAL_IDS.items()}
    config = Qwen3OmniMoeThinkerConfig(audio_config=AUDIO, vision_config=VISION, text_config=TEXT, **special_ids)
    config._attn_implementation = "eager"
    model = Qwen3OmniMoeThinkerForConditionalGeneration(config).eval()
    randomize_weights(model, seed)
    return model


def our_model(module: Qwen3OmniMoeThinkerForConditionalGeneration, window_s: int = WINDOW_S) -> TransformersAudioLM:
    """The same weights behind the contract; `module` stays unchanged."""
    extractor = feature_extractor(window_s=window_s)
    return from_parts(ARCHITECTURE, copy.deepcopy(module), tokenizer(), extractor, name="tiny")


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side, encoder attention within one second, clips of up to 2 s."""
    module = reference_model(seed)
    model = our_model(module)

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        # Every clip by itself: in one batch the class pads a clip under a second to the longest chunk of all clips.
        embeddings = module.get_input_embeddings()(torch.tensor([ids]))
        for start, waveform in zip(run_starts(ids, model.placeholder_id), waveforms, strict=True):
            features = feature_extractor()([waveform], **FULL_WINDOW)
            states = module.get_audio_features(features.input_features, features.attention_mask).last_hidden_state
            embeddings[0, start : start + len(states)] = states
        positions = torch.arange(len(ids)).expand(3, 1, -1)
        logits: Tensor = module(inputs_embeds=embeddings, position_ids=positions).logits[0]
        return logits

    return Tiny(model, reference, partial(save_and_load, ARCHITECTURE), max_s=float(WINDOW_S))
