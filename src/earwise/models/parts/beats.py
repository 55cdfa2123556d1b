"""BEATs, SALMONN's encoder for non-speech audio: a transformer over patches of a log-mel spectrogram.

Waveform -> Kaldi's log-mel filter bank (128 bins every 10 ms) -> patches of 16 x 16, ordered by time, so that 8 tokens
cover 160 ms -> convolutional position embedding -> post-norm transformer layers with DeepNorm residuals. Their
attention adds relative position biases from one table, which all layers share and each query scales by a gate.

Source: BEATs (arXiv:2212.09058); the gated bias is WavLM's (arXiv:2110.13900, section 3.1); DeepNorm is
arXiv:2203.00555; sizes are those of BEATs-base iter3+, the checkpoint that SALMONN (arXiv:2310.13289) uses. Deviations:
the weight norm of the positional convolution is folded into its weight (`fold_weight_norm`, when a checkpoint is
converted), the classifier of the fine-tuned checkpoint is left out, and there is no dropout in training.
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
FULL_SCALE = 2**15  # Kaldi expects 16-bit integers
PREEMPHASIS = 0.97
MEAN, SPREAD = 15.41663, 2 * 6.55582  # mean, and twice the standard deviation, of BEATs' training features
PATCH = 16  # mel bins and frames per patch


@dataclass(frozen=True, slots=True)
class BeatsConfig:
    """Sizes of the encoder; the defaults are those of BEATs-base (iter3+)."""

    patch_dim: int = 512
    layers: int = 12
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    conv_kernel: int = 128
    """Kernel size of the positional convolution, in tokens."""
    conv_groups: int = 16
    buckets: int = 320
    """Number of buckets of relative positions."""
    max_distance: int = 800
    """Distance in tokens from which on all distances share a bucket."""


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """Povey's window `(400,)` and the mel filters `(257, 128)`, float64."""
    with warnings.catch_warnings():
        # The lowest filters are narrower than the distance of two frequencies and empty, as in Kaldi.
        warnings.filterwarnings("ignore", message="At least one mel filter")
        mels = mel_filter_bank(
            FFT_SAMPLES // 2 + 1, MELS, 20.0, SAMPLE_RATE / 2, SAMPLE_RATE,
            norm=None, mel_scale="kaldi", triangularize_in_mel_space=True,
        )  # fmt: skip
    return torch.from_numpy(window_function(FRAME_SAMPLES, "povey", periodic=False)), torch.from_numpy(mels)


def fbank(waveform: Waveform) -> Tensor:
    """Kaldi's log-mel filter bank without dither and with snipped edges, normalised as BEATs expects it.

    Args:
        waveform: Mono at 16 kHz, at least 25 ms.
    Returns:
        Float32 `(frames, 128)`, computed in float64: one frame for every 10 ms at which a whole window fits.
    """
    window, mels = _tables()
    frames = (torch.as_tensor(waveform).double() * FULL_SCALE).unfold(0, FRAME_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - PREEMPHASIS * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    power = torch.fft.rfft(frames * window, FFT_SAMPLES).abs().square()
    log_mel = (power @ mels).clamp_min(torch.finfo(torch.float32).eps).log()
    return ((log_mel - MEAN) / SPREAD).float()


def token_count(frames: int) -> int:
    """Number of tokens of a spectrogram: 8 (one per 16 mel bins) for every complete 160 ms."""
    return frames // PATCH * (MELS // PATCH)


def fold_weight_norm(
    gain: Float[Tensor, "1 1 taps"], direction: Float[Tensor, "out ins taps"]
) -> Float[Tensor, "out ins taps"]:
    """Weight of a convolution that is stored with weight norm over its taps: `gain * direction / |direction|`."""
    return direction * (gain / direction.norm(dim=(0, 1), keepdim=True))


class Beats(nn.Module):
    """The encoder.

    Args:
        config: Sizes.
    """

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
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.layers))

    def forward(
        self, frames: Float[Tensor, "clips frames mels"], token_mask: Bool[Tensor, "clips tokens"] | None = None
    ) -> Float[Tensor, "clips tokens dim"]:
        """The states of every token.

        Args:
            frames: `fbank` of each clip, padded at the end to the longest.
            token_mask: False for padding tokens, which no other token attends to; None if there is no padding.
        """
        patches = rearrange(self.patches(frames[:, None]), "clips dim time mels -> clips (time mels) dim")
        hidden = self.widen(self.patch_norm(patches))
        if token_mask is not None:
            hidden = hidden * token_mask[:, :, None]
        # The even kernel size gives one position too many at the end.
        position_embedding = gelu(self.place(hidden.mT)[:, :, : hidden.shape[1]]).mT
        hidden = self.norm(hidden + position_embedding)
        bias = self.distance(hidden.shape[1])
        for layer in self.layers:
            hidden = layer(hidden, bias, token_mask)
        return hidden


class RelativePositionBias(nn.Module):
    """A bias per head and signed distance, in buckets that get wider with the distance (as in T5, bidirectional).

    Args:
        buckets: Number of buckets, half of them for each direction.
        max_distance: Distance from which on all distances share a bucket.
        heads: Number of attention heads.
    """

    def __init__(self, buckets: int, max_distance: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, heads)
        self.max_distance = max_distance

    def forward(self, length: int) -> Float[Tensor, "heads tokens tokens"]:
        """The bias of each key (last axis) for each query, for a sequence of this length."""
        index = torch.arange(length, device=self.table.weight.device)
        bias: Tensor = self.table(self.bucket(index[None] - index[:, None]))
        return bias.permute(2, 0, 1)

    def bucket(self, distance: Tensor) -> Tensor:
        """The bucket of a distance (key position minus query position).

        The second half of the buckets is for keys after the query. Within each half, the first half of the buckets is
        one per distance; the others are logarithmic up to `max_distance`.
        """
        half = self.table.num_embeddings // 2
        exact = half // 2
        size = distance.abs()
        ratio = torch.log(size.clamp_min(1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (ratio * (half - exact)).long()).clamp_max(half - 1)
        return (distance > 0) * half + torch.where(size < exact, size, far)


class BeatsLayer(nn.Module):
    """Attention and feed-forward, each followed by a norm of the sum with the residual scaled by `alpha` (DeepNorm).

    Args:
        config: Sizes.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.alpha = (2 * config.layers) ** 0.25
        self.attention = GatedBiasAttention(config.dim, config.heads)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self, hidden: Float[Tensor, "clips tokens dim"], bias: Float[Tensor, "heads tokens tokens"],
        token_mask: Bool[Tensor, "clips tokens"] | None,
    ) -> Float[Tensor, "clips tokens dim"]:  # fmt: skip
        """The layer's output; `token_mask` is False for padding."""
        hidden = self.attention_norm(self.alpha * hidden + self.attention(hidden, bias, token_mask))
        out: Tensor = self.norm(self.alpha * hidden + self.fc2(gelu(self.fc1(hidden))))
        return out


class GatedBiasAttention(nn.Module):
    """Self-attention with a relative position bias that each query scales by a gate per head (WavLM).

    Args:
        dim: Width of the states.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.gates = nn.Linear(dim // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(
        self, hidden: Float[Tensor, "clips tokens dim"], bias: Float[Tensor, "heads tokens tokens"],
        token_mask: Bool[Tensor, "clips tokens"] | None,
    ) -> Float[Tensor, "clips tokens dim"]:  # fmt: skip
        """Attend; `token_mask` is False for padding."""
        query, key, value = (
            rearrange(project(hidden), "clips tokens (heads dim) -> clips heads tokens dim", heads=self.heads)
            for project in (self.query, self.key, self.value)
        )
        # Eight outputs per head: four are summed for each of the two gates (update and reset).
        summed = self.gates(query).unflatten(-1, (2, 4)).sum(-1)
        update, reset = torch.sigmoid(summed).chunk(2, -1)
        gated_bias = (update * (reset * self.gate_scale - 1) + 2) * bias
        if token_mask is not None:
            gated_bias = gated_bias.masked_fill(~token_mask[:, None, None], -torch.inf)
        attended = scaled_dot_product_attention(query, key, value, gated_bias)
        out: Tensor = self.out(rearrange(attended, "clips heads tokens dim -> clips tokens (heads dim)"))
        return out
