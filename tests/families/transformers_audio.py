"""Shared parts of the families over a transformers class at test size: sizes, tokenizers, random weights, and the pair
of our model and the class.

If the class lets the padding of one clip in a batch change another clip, it is given clips of different length one at a
time.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from earwise.models.base import AudioLM
from earwise.models.families.transformers_audio import Architecture, TransformersAudioLM, from_parts, load
from earwise.types import Waveform
from families.tiny import Tiny

RATE = 16000
MELS = 16
VOCAB = 272
TEXT_CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FULL_WINDOW = {"sampling_rate": RATE, "padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
"""Arguments of a Whisper feature extractor that pad every clip to the window."""
Inputs = Callable[[Sequence[Waveform]], dict[str, Any]]
OneByOne = Callable[[Any, Sequence[Waveform]], AbstractContextManager[Any]]


def special_byte_tokenizer(special: Sequence[str], placed: Mapping[str, int]) -> Tokenizer:
    """A tokenizer with one token per byte.

    Args:
        special: Special tokens, which get the first ids.
        placed: Special tokens at ids of their own.
    """
    vocab = {token: number for number, token in enumerate(special)}
    vocab |= {symbol: len(vocab) + number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | dict(placed), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, *placed])
    return tokenizer


@torch.no_grad()
def randomize_by_layer(model: nn.Module, seed: int) -> None:
    """Random weights and statistics whose size, by kind of layer, makes every token matter."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        for name, value in layer.named_parameters(recurse=False):
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() > 1:
                value.copy_(noise if isinstance(layer, nn.Embedding) else noise * value[0].numel() ** -0.5)
            else:
                value.copy_((1.0 if name == "weight" else 0.0) + 0.1 * noise)
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(1 + 0.1 * torch.rand(layer.running_var.shape, generator=generator))


def our_model(architecture: Architecture, module: Any, tokenizer: Tokenizer, extractor: Any) -> TransformersAudioLM:
    """The same weights as `module`, which stays unchanged, behind the contract, with the encoder attention that `load`
    gives it."""
    copied = copy.deepcopy(module)
    copied.config._attn_implementation = architecture.attn_implementation
    return from_parts(architecture, copied, tokenizer, extractor)


def run_starts(ids: Sequence[int], placeholder: int) -> list[int]:
    """Index of the first token of each run of placeholders."""
    return [
        index
        for index, token in enumerate(ids)
        if token == placeholder and (index == 0 or ids[index - 1] != placeholder)
    ]


def save_and_load(architecture: Architecture, model: AudioLM, folder: Path) -> AudioLM:
    """Save a model and load it again as the family's own `load` does."""
    model.save(folder)
    return load(architecture, folder)


@dataclass(frozen=True)
class Reference:
    """How transformers' class computes the logits of a sequence.

    Attributes:
        inputs: Clips -> what the class takes of them beside the token ids.
        one_by_one: (class, clips) -> context in which the class encodes clips of different length one at a time.
        logits_divisor: What the class's logits are divided by.
    """

    inputs: Inputs
    one_by_one: OneByOne = lambda *_: nullcontext()
    logits_divisor: float = 1.0


def build_tiny(
    architecture: Architecture, module: Any, tokenizer: Tokenizer, extractor: Any, reference: Reference, *,
    max_s: float, ours: Any = None,
) -> Tiny:  # fmt: skip
    """Our model and transformers' class with the same weights.

    Args:
        architecture: The family's.
        module: transformers' class.
        tokenizer: The model's tokenizer.
        extractor: The model's feature extractor.
        reference: How the class computes logits.
        max_s: See `Tiny`.
        ours: Instance of the architecture's class, if that is not the class of `module`.
    """

    @torch.no_grad()
    def logits(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        lengths = {len(waveform) for waveform in waveforms}
        audio = reference.inputs(waveforms) if waveforms else {}
        with reference.one_by_one(module, waveforms) if len(lengths) > 1 else nullcontext():
            output: Tensor = module(input_ids=torch.tensor([list(ids)]), **audio).logits[0]
        return output / reference.logits_divisor

    def reload(model: AudioLM, folder: Path) -> AudioLM:
        return save_and_load(architecture, model, folder)

    return Tiny(our_model(architecture, ours or module, tokenizer, extractor), logits, reload, max_s=max_s)
