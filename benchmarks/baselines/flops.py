"""The least work that a GRPO step needs, in floating-point operations: every distinct token once, every clip once.

Counted are the matrix products of the linear layers of decoder and encoder (2 operations per weight and token), the
output head where a token is predicted, attention over visible pairs (2 products), and the encoder's convolutions. The
backward pass, with frozen weights and LoRA, adds the gradients of all activations and of the LoRA weights. Connector,
norms, softmax and embedding are left out as small. Divided by the machine's measured matrix-product rate, this is a
lower bound on the time of any implementation of the same mathematics; decoding is also bound by reading the weights
once per new token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from earwise.models.base import AudioLM

FRAMES_PER_S = 100
"""Mel frames per second of audio."""


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """Numbers of weights that tokens and frames pass through.

    Attributes:
        base: Weights of the decoder's linear layers, which are frozen.
        lora: Weights of LoRA, which are trained.
        head: Weights of the output head.
        attention: Number of layers times query width, in the decoder.
        encoder: Weights of the encoder's linear layers.
        stem: Weights of the encoder's two convolutions. The first is applied per mel frame, the second per state (two
            frames).
        encoder_attention: Number of layers times width, in the encoder.
    """

    base: int
    lora: int
    head: int
    attention: int
    encoder: int
    stem: tuple[int, int]
    encoder_attention: int


def weight_counts(model: AudioLM) -> WeightCounts:
    """Count the weights of a model."""
    shapes = {name: value.shape for name, value in model.module.named_parameters() if value.dim() > 1}
    by_part = {
        part: {name: shape for name, shape in shapes.items() if name.startswith(prefixes)}
        for part, prefixes in model.parameter_prefixes.items()
    }
    tables = {name: shape for name, shape in by_part["decoder"].items() if "embed_tokens" in name or "lm_head" in name}
    linear = {name: shape for name, shape in by_part["decoder"].items() if name not in tables}
    lora = sum(shape.numel() for name, shape in linear.items() if ".lora_" in name)
    query_width = sum(shape[0] for name, shape in linear.items() if "q_proj" in name and ".lora_" not in name)
    encoder = {
        name: shape for name, shape in by_part["encoder"].items() if len(shape) == 2 and "embed_positions" not in name
    }
    stem = [shape.numel() for shape in by_part["encoder"].values() if len(shape) == 3]
    return WeightCounts(
        base=sum(shape.numel() for shape in linear.values()) - lora,
        lora=lora,
        head=max(shape.numel() for shape in tables.values()),
        attention=query_width,
        encoder=sum(shape.numel() for shape in encoder.values()),
        stem=(stem[0], stem[1]),
        encoder_attention=sum(shape[0] for name, shape in encoder.items() if "q_proj" in name),
    )


def encoder_flops(counts: WeightCounts, seconds: float) -> float:
    """Encoding one clip of this many seconds, without padding."""
    frames = seconds * FRAMES_PER_S
    states = frames / 2
    linear = 2 * (counts.stem[0] * frames + (counts.stem[1] + counts.encoder) * states)
    return linear + 4 * counts.encoder_attention * states**2


def reference_flops(counts: WeightCounts, positions: Sequence[int], predicted: int) -> float:
    """Forward pass of the reference (without LoRA).

    Args:
        counts: Weights of the model.
        positions: Position of each token in its sequence.
        predicted: Number of positions at which a token is predicted.
    """
    return 2 * counts.base * len(positions) + 2 * counts.head * predicted + 4 * counts.attention * _pairs(positions)


def train_flops(counts: WeightCounts, positions: Sequence[int], predicted: int) -> float:
    """Forward and backward pass of the policy; the arguments are those of `reference_flops`."""
    forward = reference_flops(counts, positions, predicted) + 2 * counts.lora * len(positions)
    activations = 2 * (counts.base + counts.lora) * len(positions) + 2 * counts.head * predicted
    return forward + activations + 2 * counts.lora * len(positions) + 8 * counts.attention * _pairs(positions)


def rollout_seconds(
    counts: WeightCounts,
    prompt_lengths: Sequence[int],
    distinct_tokens: int,
    new_tokens: int,
    *,
    gflops: float,
    gigabytes: float,
) -> float:
    """Seconds of a rollout: prefill, then the larger of computing all tokens and reading all weights per step.

    Args:
        counts: Weights of the model, in float32.
        prompt_lengths: Number of tokens of each prompt.
        distinct_tokens: Number of tokens computed after the prompts.
        new_tokens: Number of decoding steps after the first token.
        gflops: Matrix-product rate in GFLOP/s.
        gigabytes: Rate of reading weights in GB/s.
    """
    prefill = sum(reference_flops(counts, range(length), 1) for length in prompt_lengths)
    compute = 2 * (counts.base + counts.head) * distinct_tokens
    reading = 4 * (counts.base + counts.head) * new_tokens
    return prefill / gflops / 1e9 + max(compute / gflops / 1e9, reading / gigabytes / 1e9)


def num_decoded_prefixes(groups: Sequence[Sequence[Sequence[int]]]) -> int:
    """Number of distinct prefixes that had to be computed to sample these completions: those that a token follows.

    >>> advanced([[[1, 2, 3], [1, 2, 4]], [[1, 2]]])
    3
    """
    return sum(len({tuple(ids[:n]) for ids in group for n in range(1, len(ids))}) for group in groups)


def _pairs(positions: Sequence[int]) -> int:
    """Number of attended pairs: every token attends to its ancestors and itself."""
    return sum(position + 1 for position in positions)
