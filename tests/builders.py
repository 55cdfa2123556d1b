"""Builders shared by the tests: a tiny random Qwen2-Audio, its byte tokenizer, tones, and transformers' own forward
pass on one sequence at a time."""

import copy
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from earwise.data import manifest
from earwise.forest import TokenPath
from earwise.models.families.qwen2_audio import Qwen2Audio, from_parts
from earwise.types import Audio, Example, Text, Turn, Waveform

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
MELS = 16
WINDOW_S = 2


def byte_tokenizer(audio_id: int | None = None) -> Tokenizer:
    """A tokenizer with one token per byte and the special tokens of Qwen2-Audio: 262 tokens.

    Args:
        audio_id: Id of the audio placeholder; None leaves it among the special tokens.
    """
    vocab = {token: number for number, token in enumerate(SPECIAL)}
    vocab |= {symbol: len(vocab) + number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab["<|AUDIO|>"] = vocab["<|AUDIO|>"] if audio_id is None else audio_id
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def feature_extractor(mels: int = MELS, window_s: int = WINDOW_S) -> WhisperFeatureExtractor:
    """A Whisper feature extractor for a window of `window_s` seconds."""
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s)


@torch.no_grad()
def randomize_weights(model: nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    """Set random weights, large enough that every token affects the output, whatever the class's own initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm.weight" in name:
            parameter.copy_(1 + 0.1 * noise)
        elif parameter.dim() == 1:
            parameter.copy_(0.1 * noise)
        else:
            fan = parameter[0].numel() if "embed" not in name else 1
            parameter.copy_(scale * noise * fan**-0.5)


def tiny_hf_model(
    seed: int = 0, *, tied: bool = False, kv_heads: int = 2, window_s: int = WINDOW_S, scale: float = 1.0,
    sliding_window: int | None = None,
) -> Qwen2AudioForConditionalGeneration:  # fmt: skip
    """transformers' Qwen2-Audio with two small layers in encoder and decoder, and weights of `randomize_weights`;
    `sliding_window` gives the second layer of the decoder a sliding window of this many tokens."""
    audio = {
        "num_mel_bins": MELS,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "d_model": 24,
    }
    audio |= {"max_source_positions": 50 * window_s}
    text = {
        "model_type": "qwen2",
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    }
    text |= {
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
    }
    text |= {
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "pad_token_id": SPECIAL.index("<|endoftext|>"),
    }
    if sliding_window is not None:
        text |= {"use_sliding_window": True, "sliding_window": sliding_window, "max_window_layers": 1}
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=SPECIAL.index("<|AUDIO|>"))
    config._attn_implementation = "eager"
    model = Qwen2AudioForConditionalGeneration(config).eval()
    randomize_weights(model, seed, scale)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return model


def tiny_qwen2_audio(
    seed: int = 0, *, trim: bool = True, tied: bool = False, kv_heads: int = 2, scale: float = 1.0,
    sliding_window: int | None = None,
) -> Qwen2Audio:  # fmt: skip
    """A tiny random Qwen2-Audio as an `AudioLM`, for clips of up to 2 s; see `tiny_hf_model`."""
    module = tiny_hf_model(seed, tied=tied, kv_heads=kv_heads, scale=scale, sliding_window=sliding_window)
    return from_parts(module, byte_tokenizer(), feature_extractor(), name="tiny", trim=trim)


def hf_copy(model: Qwen2Audio, implementation: str = "eager") -> Qwen2AudioForConditionalGeneration:
    """A copy of the module, LoRA layers included, with one of transformers' own attention implementations."""
    module = copy.deepcopy(model.module)
    module.model.language_model.config._attn_implementation = implementation
    module.model.audio_tower.config._attn_implementation = implementation
    return module


def hf_inputs(
    path: TokenPath, waveforms: Mapping[int, Waveform], window_s: int = WINDOW_S, mels: int = MELS
) -> dict[str, Tensor]:
    """The inputs that transformers' processor makes for one sequence: ids, and features of padded clips."""
    clips = [
        clip for index, clip in enumerate(path.clips) if clip >= 0 and (index == 0 or path.clips[index - 1] != clip)
    ]
    inputs = {"input_ids": torch.tensor([path.ids]), "attention_mask": torch.ones(1, len(path.ids), dtype=torch.long)}
    if clips:
        features = feature_extractor(mels, window_s)(
            [waveforms[clip] for clip in clips],
            sampling_rate=16000,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        inputs |= {"input_features": features.input_features, "feature_attention_mask": features.attention_mask}
    return inputs


def hf_logprobs(
    module: Qwen2AudioForConditionalGeneration, path: TokenPath, waveforms: Mapping[int, Waveform]
) -> Tensor:
    """Log-probabilities of the target tokens of a path, by transformers' own forward pass on that path alone."""
    logprobs = module(**hf_inputs(path, waveforms)).logits[0].float().log_softmax(-1)
    targets = [index for index, is_target in enumerate(path.trained) if is_target]
    return logprobs[[index - 1 for index in targets], [path.ids[index] for index in targets]]


def tone(seconds: float, hz: float = 440.0, seed: int = 0) -> Waveform:
    """A tone with a little noise, mono at 16 kHz."""
    t = np.arange(round(seconds * 16000)) / 16000
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * hz * t) + 0.02 * noise).astype(np.float32)


def user_question(question: str, clips: int = 1) -> tuple[Turn, ...]:
    """A conversation of one user turn: a number of clips and a question."""
    return (Turn("user", (*(Audio(f"{number}.wav") for number in range(clips)), Text(question))),)


def write_two_questions(folder: pathlib.Path) -> None:
    """Write `rows.jsonl` with two questions, and their clips as 16-bit WAV."""
    rows = []
    for name, seconds, hertz in (("a", 0.4, 440.0), ("b", 0.6, 700.0)):
        soundfile.write(folder / f"{name}.wav", tone(seconds, hertz), 16000, subtype="PCM_16")
        turns = (Turn("user", (Audio(f"{name}.wav"), Text("pitch?"))),)
        rows.append(Example(name, turns, ("low",), ("low", "high"), root=folder))
    manifest.write(folder / "rows.jsonl", rows)


def max_abs(differences: Sequence[Tensor]) -> float:
    """Largest absolute value in some tensors; 0 if they are all empty."""
    return max((float(value.detach().abs().max()) for value in differences if value.numel()), default=0.0)
