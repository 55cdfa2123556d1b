"""The models of the benchmarks: the embedded model, and Qwen2-Audio of several sizes with random weights.

All implementations train the same parameters of one model in memory: LoRA on the decoder and the whole connector, the
recipes' default. `perturb` moves them a little away from the reference, so that the KL has a gradient and no LoRA
matrix is zero.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from torch import Tensor
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from baselines.workload import examples
from earwise.config.stages import TrainableConfig
from earwise.errors import ConfigError
from earwise.models.base import AudioLM, load
from earwise.models.families.qwen2_audio import from_parts
from earwise.models.parts import lora_product
from earwise.prompts import CHOICES_PROMPT, INSTRUCTIONS
from earwise.training.trainable import set_trainable

RANDOM = "qwen2audio-random:"
PADDED = "embedded-padded"
SPECIAL = ("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")

# (mels, window in seconds), (layers, width, heads, ffn) of encoder and decoder, vocabulary. `small` has Whisper base's
# encoder, `medium` Whisper small's with the released vocabulary; the released model is 32 x 1280 and 32 x 4096.
SIZES = {
    "tiny": ((16, 2), (2, 24, 2, 48), (2, 32, 4, 48), 1024),
    "small": ((80, 30), (6, 512, 8, 2048), (12, 768, 12, 2048), 32000),
    "medium": ((128, 30), (12, 768, 12, 3072), (24, 1024, 16, 2816), 156032),
}


def load_benchmark_model(name: str, seed: int = 0) -> AudioLM:
    """A model on the CPU, prepared for training.

    Args:
        name: `qwen2audio-random:SIZE`, a name that `earwise models` lists, or `embedded-padded`, the embedded model
            with clips padded to 30 s.
        seed: Seed of random weights.

    Raises:
        ConfigError: if the size is unknown.
    """
    torch.manual_seed(seed)
    if name.startswith(RANDOM):
        model = random_qwen2_audio(name.removeprefix(RANDOM))
    elif name == PADDED:
        model = load("embedded", device="cpu", trim=False)
    else:
        model = load(name, device="cpu")
    set_trainable(model, TrainableConfig())
    return model


def random_qwen2_audio(size: str) -> AudioLM:
    """Qwen2-Audio in the released layout, with random weights from torch's global generator.

    Args:
        size: Key of `SIZES`.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    (mels, window_s), encoder, decoder, vocabulary = SIZES[size]
    audio = {"num_mel_bins": mels, "max_source_positions": 50 * window_s}
    audio |= dict(
        zip(("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim"), encoder, strict=True)
    )
    text = {"model_type": "qwen2", "vocab_size": vocabulary, "max_position_embeddings": 8192}
    text |= dict(
        zip(("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"), decoder, strict=True)
    )
    text |= {"num_key_value_heads": text["num_attention_heads"], "bos_token_id": None}
    text |= {"eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": SPECIAL.index("<|endoftext|>")}
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=SPECIAL.index("<|AUDIO|>"))
    module = Qwen2AudioForConditionalGeneration(config).eval()
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s)
    texts = [row.question for row in examples()] + [choice for row in examples() for choice in row.choices]
    tokenizer = word_tokenizer([*texts, *INSTRUCTIONS.values(), CHOICES_PROMPT, "system user assistant Audio 1"])
    return from_parts(module, tokenizer, extractor, name=RANDOM + size)


def word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer with one token per word or punctuation mark; prompts are about as long as with subwords."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    tokenizer = Tokenizer(token_models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


@contextmanager
def peft_lora_forward(model: AudioLM) -> Iterator[None]:
    """Compute LoRA with PEFT's own forward inside the block, as other trainers do."""
    fused = [
        layer
        for layer in model.module.modules()
        if isinstance(vars(layer).get("forward"), lora_product.FusedLoraForward)
    ]
    forwards = [vars(layer).pop("forward") for layer in fused]
    try:
        yield
    finally:
        for layer, forward in zip(fused, forwards, strict=True):
            layer.forward = forward  # type: ignore[method-assign]


def trained_parameters(model: AudioLM) -> dict[str, Tensor]:
    """The trained parameters, by name."""
    return {name: value for name, value in model.module.named_parameters() if value.requires_grad}


@torch.no_grad()
def perturb(model: AudioLM, seed: int = 0) -> None:
    """Add noise to every trained parameter, in place: 1 % of its standard deviation, or 0.01 if it is constant."""
    generator = torch.Generator().manual_seed(seed)
    for value in trained_parameters(model).values():
        spread = float(value.std(correction=0)) or 1.0
        value += 0.01 * spread * torch.randn(value.shape, generator=generator)


def take_gradients(model: AudioLM) -> Tensor:
    """All gradients as one vector, with zeros for parameters without one; the gradients are cleared."""
    values = trained_parameters(model).values()
    flat = torch.cat([(torch.zeros_like(value) if value.grad is None else value.grad).flatten() for value in values])
    for value in values:
        value.grad = None
    return flat
