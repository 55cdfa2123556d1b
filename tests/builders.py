"""Small builders shared by the tests: a tiny random Qwen2-Audio, its byte tokenizer, sounds, and transformers' own
one-by-one forward.
"""

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
    """One token per byte and the special marks of Qwen2-Audio, 262 tokens; `audio_id` moves the placeholder to another
    id.
    """
    vocab = {mark: number for number, mark in enumerate(SPECIAL)}
    vocab |= {symbol: len(vocab) + number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab["<|AUDIO|>"] = vocab["<|AUDIO|>"] if audio_id is None else audio_id
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def feature_extractor(mels: int = MELS, window_s: int = WINDOW_S) -> WhisperFeatureExtractor:
    """Whisper features for a window of `window_s` seconds."""
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s)


@torch.no_grad()
def randomize_weights(model: nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    """Random weights of a size at which every token matters, whatever the class would have drawn."""
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
    seed: int = 0, *, tied: bool = False, kv_heads: int = 2, window_s: int = WINDOW_S, scale: float = 1.0
) -> Qwen2AudioForConditionalGeneration:
    """transformers' class with two small layers on each side and weights large enough that every token matters."""
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
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=SPECIAL.index("<|AUDIO|>"))
    config._attn_implementation = "eager"
    model = Qwen2AudioForConditionalGeneration(config).eval()
    randomize_weights(model, seed, scale)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return model


def tiny_qwen2_audio(
    seed: int = 0, *, trim: bool = True, tied: bool = False, kv_heads: int = 2, scale: float = 1.0
) -> Qwen2Audio:
    """A tiny random Qwen2-Audio behind the `AudioLM` contract; hears 2 s."""
    module = tiny_hf_model(seed, tied=tied, kv_heads=kv_heads, scale=scale)
    return from_parts(module, byte_tokenizer(), feature_extractor(), name="tiny", trim=trim)


def hf_copy(model: Qwen2Audio, implementation: str = "eager") -> Qwen2AudioForConditionalGeneration:
    """transformers' class with the same weights (LoRA layers included) and an attention of its own."""
    module = copy.deepcopy(model.module)
    module.model.language_model.config._attn_implementation = implementation
    module.model.audio_tower.config._attn_implementation = implementation
    return module


def hf_inputs(
    path: TokenPath, waveforms: Mapping[int, Waveform], window_s: int = WINDOW_S, mels: int = MELS
) -> dict[str, Tensor]:
    """What transformers' processor would give for one sequence: ids and features of clips padded to the window."""
    clips = [clip for at, clip in enumerate(path.clips) if clip >= 0 and (at == 0 or path.clips[at - 1] != clip)]
    inputs = {"input_ids": torch.tensor([path.ids]), "attention_mask": torch.ones(1, len(path.ids), dtype=torch.long)}
    if clips:
        heard = feature_extractor(mels, window_s)(
            [waveforms[clip] for clip in clips],
            sampling_rate=16000,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        inputs |= {"input_features": heard.input_features, "feature_attention_mask": heard.attention_mask}
    return inputs


def hf_logprobs(
    module: Qwen2AudioForConditionalGeneration, path: TokenPath, waveforms: Mapping[int, Waveform]
) -> Tensor:
    """Log-probabilities of a path's trained tokens, by transformers' own forward on that path alone."""
    scores = module(**hf_inputs(path, waveforms)).logits[0].float().log_softmax(-1)
    at = [place for place, trained in enumerate(path.trained) if trained]
    return scores[[place - 1 for place in at], [path.ids[place] for place in at]]


def tone(seconds: float, hz: float = 440.0, seed: int = 0) -> Waveform:
    """A tone over a little noise, mono at 16 kHz."""
    t = np.arange(round(seconds * 16000)) / 16000
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * hz * t) + 0.02 * noise).astype(np.float32)


def user_question(question: str, clips: int = 1) -> tuple[Turn, ...]:
    """A user turn with `clips` sounds and a question."""
    return (Turn("user", (*(Audio(f"{number}.wav") for number in range(clips)), Text(question))),)


def write_two_questions(folder: pathlib.Path) -> None:
    """`rows.jsonl` and its two clips, of which 16 bits hold every sample exactly."""
    rows = []
    for name, seconds, hertz in (("a", 0.4, 440.0), ("b", 0.6, 700.0)):
        soundfile.write(folder / f"{name}.wav", tone(seconds, hertz), 16000, subtype="PCM_16")
        turns = (Turn("user", (Audio(f"{name}.wav"), Text("pitch?"))),)
        rows.append(Example(name, turns, ("low",), ("low", "high"), root=folder))
    manifest.write(folder / "rows.jsonl", rows)


def max_abs(differences: Sequence[Tensor]) -> float:
    """Largest absolute value, 0 if there is none."""
    return max((float(value.detach().abs().max()) for value in differences if value.numel()), default=0.0)
