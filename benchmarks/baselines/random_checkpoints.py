"""Checkpoints with random weights in the released sizes, or tiny, for the recipes of a family; see `gpu_day.py`.

Written as transformers writes released files, so a recipe loads them like any checkpoint (`model.weights=FOLDER`). The
tokenizer is trained on the prompts themselves: texts take about as many tokens as with the released one, and the
embedding table keeps the released number of rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from torch import nn
from transformers import (
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
)

from baselines.qwen2_audio_7b import AUDIO, SMALL_AUDIO, SMALL_TEXT, TEXT
from earwise.models.base import AudioLM
from earwise.models.families import mellow, qwen2_audio, qwen25_omni, transformers_audio

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
VOCABULARY = 900
"""Tokens of the tokenizer, fewer than any embedding table has rows."""
OMNI_AUDIO = {
    "num_mel_bins": 128, "encoder_layers": 32, "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
    "output_dim": 3584, "n_window": 100,
}  # fmt: skip
OMNI_TEXT = {
    "vocab_size": 152064, "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
SMALL_OMNI_TEXT = SMALL_TEXT | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
}
UNUSED_VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
    "fullatt_block_indexes": [0],
}  # fmt: skip
SMALL_MELLOW_ENCODER = {"depths": [1, 1], "patch_embeds_hidden_size": 8, "num_attention_heads": [2, 2]}


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer whose first tokens are `SPECIAL`."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters have this dtype inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _build(make: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> nn.Module:
    """A module built on its device, with the random weights of its class."""
    torch.manual_seed(0)
    with _default_dtype(dtype), torch.device(device):
        return make()


def random_qwen2_audio(tokenizer: Tokenizer, device: str, *, small: bool) -> AudioLM:
    """Qwen2-Audio-7B, or one of two layers."""
    audio, text = (AUDIO | SMALL_AUDIO, TEXT | SMALL_TEXT) if small else (AUDIO, TEXT)
    config = Qwen2AudioConfig(
        audio_config=audio, text_config={"model_type": "qwen2"} | text | _special_ids(), audio_token_index=3
    )
    module = _build(lambda: Qwen2AudioForConditionalGeneration(config), device, torch.bfloat16)
    extractor = WhisperFeatureExtractor(feature_size=audio["num_mel_bins"])
    return qwen2_audio.from_parts(module, tokenizer, extractor)


def random_qwen25_omni(tokenizer: Tokenizer, device: str, *, small: bool) -> AudioLM:
    """The thinker of Qwen2.5-Omni-7B, or one of two layers; without its visual tower, which is never computed."""
    audio = OMNI_AUDIO | SMALL_AUDIO | {"output_dim": SMALL_TEXT["hidden_size"]} if small else OMNI_AUDIO
    text = OMNI_TEXT | SMALL_OMNI_TEXT if small else OMNI_TEXT
    vision = UNUSED_VISION | {"out_hidden_size": text["hidden_size"]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=audio, vision_config=vision, text_config=text | _special_ids(), audio_token_index=3,
        audio_start_token_id=4, audio_end_token_id=5, image_token_index=len(SPECIAL) + VOCABULARY,
        video_token_index=len(SPECIAL) + VOCABULARY + 1, vision_start_token_id=len(SPECIAL) + VOCABULARY + 2,
    )  # fmt: skip
    module = _build(lambda: Qwen2_5OmniThinkerForConditionalGeneration(config), device, torch.bfloat16)
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=qwen25_omni.WINDOW_S)
    return transformers_audio.from_parts(qwen25_omni.ARCHITECTURE, module, tokenizer, extractor)


def random_mellow(tokenizer: Tokenizer, device: str, *, small: bool) -> AudioLM:
    """Mellow v0, or one with a decoder of two layers."""
    config: dict[str, Any] = mellow.RELEASED | {"placeholder": SPECIAL[3]}
    decoder = {"bos_token_id": 0, "eos_token_id": 0}
    if small:
        decoder |= {"num_hidden_layers": 2}
    config["decoder"] = config["decoder"] | decoder
    module = _build(lambda: mellow.MellowModule(config), device, torch.float32)
    return mellow.Mellow(module, config, tokenizer)


def _special_ids() -> dict[str, Any]:
    return {"bos_token_id": None, "eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": 0}


BUILDERS: Mapping[str, Callable[..., AudioLM]] = {
    "qwen2_audio": random_qwen2_audio,
    "qwen25_omni": random_qwen25_omni,
    "mellow": random_mellow,
}
"""Family -> function that builds it with random weights. Other families of the recipes come with weights."""


def write_checkpoint(family: str, folder: Path, texts: Iterable[str], device: str, *, small: bool) -> None:
    """Write a checkpoint with random weights.

    Args:
        family: Key of `BUILDERS`.
        folder: Folder to write; its parent exists.
        texts: Texts that the tokenizer is trained on.
        device: Device to draw the weights on.
        small: Two layers in place of the released sizes.
    """
    BUILDERS[family](train_tokenizer(texts), device, small=small).save(folder)
