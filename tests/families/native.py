"""Qwen3-Omni's thinker and Audio Flamingo 3 at test size, against transformers' own classes."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path as Folder

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

from builders import MELS, SPECIAL, WINDOW_S, byte_tokenizer, feature_extractor, fill
from earwise.models.base import AudioLM
from earwise.models.families import audio_flamingo3 as flamingo
from earwise.models.families import native
from earwise.models.families import qwen3_omni as omni
from earwise.types import Waveform
from families.qwen25_omni import AUDIO, MARKS, TEXT, VISION
from families.tiny import Tiny


def marked(**renamed: str) -> Tokenizer:
    """The byte tokenizer with other names for its audio marks."""
    names = {"mark": "<|AUDIO|>", "start": "<|audio_bos|>", "end": "<|audio_eos|>"}
    text = byte_tokenizer().to_str()
    for key, name in renamed.items():
        text = text.replace(names[key], name)
    return Tokenizer.from_str(text)


def reload(family: str, changed: AudioLM, folder: Folder) -> AudioLM:
    """Through the family's own `load`."""
    changed.save(folder)
    return native.load(family, folder)


def plain_qwen3_omni(seed: int = 0) -> Qwen3OmniMoeThinkerForConditionalGeneration:
    """transformers' class, visual tower included; four experts of which two work on a token."""
    audio = AUDIO | {"n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 8}
    vision = {
        key: value for key, value in VISION.items() if key != "fullatt_block_indexes"
    } | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
    text = TEXT | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
    marks = {key.replace("_index", "_id"): value for key, value in MARKS.items()}
    config = Qwen3OmniMoeThinkerConfig(audio_config=audio, vision_config=vision, text_config=text, **marks)
    config._attn_implementation = "eager"
    model = Qwen3OmniMoeThinkerForConditionalGeneration(config).eval()
    fill(model, seed)
    return model


def qwen3_omni(seed: int = 0) -> Tiny:
    """Two layers on each side, attention in the encoder within one second, hears 2 s."""
    module = plain_qwen3_omni(seed)
    tokenizer = marked(mark="<|audio_pad|>", start="<|audio_start|>", end="<|audio_end|>")
    model = native.from_parts(omni.ROW, copy.deepcopy(module), tokenizer, feature_extractor(), name="tiny")

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        # Every clip by itself: in one batch the class pads a clip under a second to the longest chunk of all clips.
        whole = torch.tensor([ids])
        embedded = module.get_input_embeddings()(whole)
        for place, sound in zip(starts(ids, model.placeholder_id), waveforms, strict=True):
            heard = feature_extractor()([sound], **PADDED)
            states = module.get_audio_features(heard.input_features, heard.attention_mask).last_hidden_state
            embedded[0, place : place + len(states)] = states
        positions = torch.arange(len(ids)).expand(3, 1, -1)
        logits: Tensor = module(inputs_embeds=embedded, position_ids=positions).logits[0]
        return logits

    return Tiny(model, reference, partial(reload, "qwen3_omni"), max_s=float(WINDOW_S))


PADDED = {"sampling_rate": 16000, "padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}


def starts(ids: Sequence[int], placeholder: int) -> list[int]:
    """Where each run of placeholders begins."""
    return [at for at, token in enumerate(ids) if token == placeholder and (at == 0 or ids[at - 1] != placeholder)]


def plain_audio_flamingo3(seed: int = 0) -> AudioFlamingo3ForConditionalGeneration:
    """transformers' class with windows of one second."""
    audio = {
        "num_mel_bins": MELS,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "hidden_size": 24,
        "max_source_positions": 50,
    }
    text = {key: value for key, value in TEXT.items() if key != "rope_parameters"} | {"model_type": "qwen2"}
    config = AudioFlamingo3Config(audio_config=audio, text_config=text, audio_token_id=SPECIAL.index("<|AUDIO|>"))
    config._attn_implementation = "eager"
    model = AudioFlamingo3ForConditionalGeneration(config).eval()
    fill(model, seed)
    return model


def audio_flamingo3(seed: int = 0) -> Tiny:
    """Two layers on each side, windows of one second, clips of up to twenty."""
    module = plain_audio_flamingo3(seed)
    features = feature_extractor(window_s=1)
    model = native.from_parts(flamingo.ROW, copy.deepcopy(module), marked(mark="<sound>"), features, name="tiny")

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        pieces = [sound[at : at + 16000] for sound in waveforms for at in range(0, len(sound), 16000)]
        inputs = {"input_ids": torch.tensor([ids])}
        if pieces:
            heard = features(pieces, **PADDED)
            inputs |= {"input_features": heard.input_features, "input_features_mask": heard.attention_mask}
        logits: Tensor = module(**inputs).logits[0]
        return logits

    return Tiny(model, reference, partial(reload, "audio_flamingo3"), max_s=4.0)
