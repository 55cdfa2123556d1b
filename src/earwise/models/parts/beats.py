"""BEATs: a transformer over patches of a log-mel picture, SALMONN's ear for everything that is not speech.

Waveform -> Kaldi's filter bank (128 bins, 10 ms) -> patches of 16 x 16, time-major, so that 8 tokens stand for 160 ms
-> convolutional positions -> post-norm layers with deep-norm residuals, whose attention adds one table of relative
position biases, shared by all layers and gated by each query.

Source: BEATs (arXiv:2212.09058); the gated bias is WavLM's (arXiv:2110.13900, section 3.1), deep-norm is
arXiv:2203.00555; sizes in papers/salmonn.md sections 1 and 6. Deviations: the positional convolution's weight norm is
folded into its weight (`folded`, when a checkpoint is converted), the classifier of the fine-tuned checkpoint is left
out, and nothing is dropped in training.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers.audio_utils import mel_filter_bank, window_function

from earwise.types import Waveform

SAMPLE_RATE = 16000
MELS = 128
FRAME_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512  # 25 ms every 10 ms
FULL_SCALE = 2**15  # Kaldi reads 16-bit integers
PREEMPHASIS = 0.97
MEAN, SPREAD = 15.41663, 2 * 6.55582  # of the log-mel values that BEATs was trained on
PATCH = 16  # mel bins, and frames


@dataclass(frozen=True, slots=True)
class BeatsConfig:
    """Sizes; the defaults are BEATs-base (iter3+)."""

    patch_dim: int = 512
    layers: int = 12
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    conv_kernel: int = 128
    """Taps of the positional convolution, in tokens."""
    conv_groups: int = 16
    buckets: int = 320
    """Rows of the table of relative position biases."""
    max_distance: int = 800
    """Tokens beyond which all distances share a bucket."""


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """Povey's window `(400,)` and the mel filters `(257, 128)`, float64."""
    with warnings.catch_warnings():
        # The lowest of so many filters fall between two frequencies and are empty: so it is in Kaldi, too.
        warnings.filterwarnings("ignore", message="At least one mel filter")
        mels = mel_filter_bank(
            FFT_SAMPLES // 2 + 1, MELS, 20.0, SAMPLE_RATE / 2, SAMPLE_RATE,
            norm=None, mel_scale="kaldi", triangularize_in_mel_space=True,
        )  # fmt: skip
    return torch.from_numpy(window_function(FRAME_SAMPLES, "povey", periodic=False)), torch.from_numpy(mels)


def fbank(wave: Waveform) -> Tensor:
    """Kaldi's log-mel filter bank (no dither, edges snipped) as BEATs is fed it, normalised.

    Args:
        wave: Mono at 16 kHz, at least 25 ms.
    Returns:
        Float32 `(frames, 128)`: one frame for every 10 ms that a whole window fits into. Computed in float64.
    """
    window, mels = _tables()
    frames = (torch.as_tensor(wave).double() * FULL_SCALE).unfold(0, FRAME_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - PREEMPHASIS * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    power = torch.fft.rfft(frames * window, FFT_SAMPLES).abs().square()
    logs = (power @ mels).clamp_min(torch.finfo(torch.float32).eps).log()
    return ((logs - MEAN) / SPREAD).float()


def token_count(frames: int) -> int:
    """Tokens of a picture of `frames` frames: 8 (one for every 16 mel bins) per whole 160 ms."""
    return frames // PATCH * (MELS // PATCH)


def fold_weight_norm(gain: Float[Tensor, "1 1 taps"], direction: Float[Tensor, "out ins taps"]) -> Float[Tensor, "out ins taps"]:
    """Weight of a convolution that is stored with weight norm over its taps: `gain * direction / |direction|`."""
    return direction * (gain / direction.norm(dim=(0, 1), keepdim=True))


class Beats(nn.Module):
    """The encoder; give it the sizes, then the weights."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, config.patch_dim, PATCH, PATCH, bias=False)
        self.patch_norm = nn.LayerNorm(config.patch_dim)
        self.widen = nn.Linear(config.patch_dim, config.dim)
        self.place = nn.Conv1d(
            config.dim, config.dim, config.conv_kernel, padding=config.conv_kernel // 2, groups=config.conv_groups
        )
        self.norm = nn.LayerNorm(config.dim)
        self.distance = RelativePositionBias(config.buckets, config.max_distance, config.heads)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(
        self, frames: Float[Tensor, "clips frames mels"], seen: Bool[Tensor, "clips tokens"] | None = None
    ) -> Float[Tensor, "clips tokens dim"]:
        """States of every token.

        Args:
            frames: `fbank` of each clip, padded at the end to the longest.
            seen: False at tokens of padding, which no other token hears; None if there are none.
        """
        picture = rearrange(self.patches(frames[:, None]), "clips dim time mels -> clips (time mels) dim")
        hidden = self.widen(self.patch_norm(picture))
        if seen is not None:
            hidden = hidden * seen[:, :, None]
        # An even number of taps gives one place too many at the end.
        placed = gelu(self.place(hidden.mT)[:, :, : hidden.shape[1]]).mT
        hidden = self.norm(hidden + placed)
        bias = self.distance(hidden.shape[1])
        for layer in self.layers:
            hidden = layer(hidden, bias, seen)
        return hidden


class RelativePositionBias(nn.Module):
    """One bias a head for every signed distance, in buckets that grow with the distance (T5's, both directions)."""

    def __init__(self, buckets: int, max_distance: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, heads)
        self.max_distance = max_distance

    def forward(self, length: int) -> Float[Tensor, "heads tokens tokens"]:
        """Bias of each key (last axis) for each query."""
        index = torch.arange(length, device=self.table.weight.device)
        bias: Tensor = self.table(self.bucket(index[None] - index[:, None]))
        return bias.permute(2, 0, 1)

    def bucket(self, distance: Tensor) -> Tensor:
        """Row of the table for key minus query: half of the rows for keys behind it; of each half, one row a distance
        up to half of that, then logarithmic up to `max_distance`."""
        half = self.table.num_embeddings // 2
        exact = half // 2
        size = distance.abs()
        ratio = torch.log(size.clamp_min(1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (ratio * (half - exact)).long()).clamp_max(half - 1)
        return (distance > 0) * half + torch.where(size < exact, size, far)


class Layer(nn.Module):
    """Attention and feed-forward, each normalised after a residual that is scaled up by `alpha` (deep-norm)."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.alpha = (2 * config.layers) ** 0.25
        self.attention = Attention(config.dim, config.heads)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self, hidden: Float[Tensor, "clips tokens dim"], bias: Float[Tensor, "heads tokens tokens"],
        seen: Bool[Tensor, "clips tokens"] | None,
    ) -> Float[Tensor, "clips tokens dim"]:  # fmt: skip
        hidden = self.attention_norm(self.alpha * hidden + self.attention(hidden, bias, seen))
        out: Tensor = self.norm(self.alpha * hidden + self.fc2(gelu(self.fc1(hidden))))
        return out


class Attention(nn.Module):
    """Self-attention whose distance bias each query turns up or down, head by head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.gates = nn.Linear(dim // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(
        self, hidden: Float[Tensor, "clips tokens dim"], bias: Float[Tensor, "heads tokens tokens"],
        seen: Bool[Tensor, "clips tokens"] | None,
    ) -> Float[Tensor, "clips tokens dim"]:  # fmt: skip
        query, key, value = (
            rearrange(project(hidden), "clips tokens (heads dim) -> clips heads tokens dim", heads=self.heads)
            for project in (self.query, self.key, self.value)
        )
        # Eight outputs a head, four summed for each of the two gates (update and reset).
        summed = self.gates(query).unflatten(-1, (2, 4)).sum(-1)
        update, reset = torch.sigmoid(summed).chunk(2, -1)
        mask = (update * (reset * self.gate_scale - 1) + 2) * bias
        if seen is not None:
            mask = mask.masked_fill(~seen[:, None, None], -torch.inf)
        mixed = scaled_dot_product_attention(query, key, value, mask)
        out: Tensor = self.out(rearrange(mixed, "clips heads tokens dim -> clips tokens (heads dim)"))
        return out
