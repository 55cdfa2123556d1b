"""Qwen2-Audio-7B with random weights in its released sizes, and questions with synthetic clips, for `gpu.py`."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from baselines.models import SPECIAL, word_tokenizer
from earwise.models.base import AudioLM
from earwise.models.families.qwen2_audio import from_parts
from earwise.prompts import CHOICES_PROMPT, INSTRUCTIONS
from earwise.types import Audio, Example, Text, Turn

# From the released config.json of Qwen2-Audio-7B-Instruct: encoder of Whisper large v3, decoder of Qwen-7B.
AUDIO = {
    "num_mel_bins": 128, "max_source_positions": 1500, "encoder_layers": 32, "d_model": 1280,
    "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
}  # fmt: skip
TEXT = {
    "vocab_size": 156032, "max_position_embeddings": 8192, "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008, "rms_norm_eps": 1e-5,
}  # fmt: skip
SMALL_AUDIO = {"encoder_layers": 2, "d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
SMALL_TEXT = {
    "vocab_size": 1024, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 96,
}  # fmt: skip
CHOICES = ("man", "woman", "dog", "car")
QUESTION = "What is the source of the sound that is heard in the second half of the video"


def build(audio: dict[str, Any], text: dict[str, Any], device: str, dtype: torch.dtype) -> AudioLM:
    """A Qwen2-Audio with random weights, built on its device.

    Args:
        audio: Config of the encoder.
        text: Config of the decoder.
        device: Device of the weights.
        dtype: Dtype of the weights.
    """
    special_ids = {"bos_token_id": None, "eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": 1}
    decoder = {"model_type": "qwen2"} | text | special_ids
    config = Qwen2AudioConfig(audio_config=audio, text_config=decoder, audio_token_index=SPECIAL.index("<|AUDIO|>"))
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = Qwen2AudioForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default_dtype)
    texts = [
        QUESTION,
        *CHOICES,
        *INSTRUCTIONS.values(),
        CHOICES_PROMPT,
        "system user assistant You are a helpful Audio 1",
    ]
    extractor = WhisperFeatureExtractor(feature_size=audio["num_mel_bins"])
    return from_parts(module, word_tokenizer(texts), extractor, name="qwen2_audio-random")


def questions(folder: Path, count: int, seconds: float) -> list[Example]:
    """Questions with one clip each, written into a folder; no two clips are the same."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * 16000)) / 16000
    examples = []
    for number in range(count):
        waveform = 0.3 * np.sin(2 * np.pi * (200 + 7 * number) * time) + 0.02 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{number}.wav", waveform.astype(np.float32), 16000)
        turn = Turn("user", (Audio(f"{number}.wav"), Text(QUESTION)))
        examples.append(Example(str(number), (turn,), answer=CHOICES[:1], choices=CHOICES, root=folder))
    return examples
