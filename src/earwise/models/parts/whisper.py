"""Whisper's encoder on clips of different lengths, with the states of all its layers, and its log-mel features.

Whisper was trained on 30 s windows without an attention mask. Here each clip of a batch gives the result that it would
give alone: mel frames, the output of the first convolution, and attention keys beyond the clip's end are zeroed or
masked. Whether a model works with clips that are not padded to 30 s depends on its training (the embedded model is
trained that way).

The modules only hold weights, under transformers' names, so that no import of transformers is needed; its own
`WhisperEncoder` can be given in place of `WhisperEncoder`.

Source: Whisper (arXiv:2212.04356); the names and the feature extraction of transformers' Whisper classes.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from earwise.types import Waveform

SAMPLE_RATE = 16000
HOP_SAMPLES = 160  # 10 ms at 16 kHz
WINDOW_SAMPLES = 400  # of one mel frame
STRIDE = 2  # stride of the second convolution: one encoder state per 20 ms
_LOG_FROM_HZ, _LOG_FROM_MEL, _LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27.0
"""Slaney's mel scale: 3 mel per 200 Hz up to here, then logarithmic steps."""


class WhisperAttention(nn.Module):
    """Projections of one attention layer, which `run_encoder_layer` reads.

    Args:
        dim: Width of the encoder.
        heads: Number of attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj, self.q_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(3))


class WhisperEncoderLayer(nn.Module):
    """Weights of one encoder layer, which `run_encoder_layer` reads.

    Args:
        dim: Width of the encoder.
        heads: Number of attention heads.
        ffn: Width of the feed-forward part.
    """

    def __init__(self, dim: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = WhisperAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.final_layer_norm = nn.LayerNorm(dim)


class WhisperEncoder(nn.Module):
    """Weights of Whisper's encoder, which `layer_states` reads. All weights are to be loaded or set.

    Args:
        config: Sizes, as fields of transformers' `WhisperConfig`.
    """

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        dim, heads, ffn = (config[key] for key in ("d_model", "encoder_attention_heads", "encoder_ffn_dim"))
        self.config = config
        self.num_mel_bins = config["num_mel_bins"]
        self.conv1 = nn.Conv1d(self.num_mel_bins, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size=3, stride=STRIDE, padding=1)
        # An embedding that draws random weights would import torch's compiler on the meta device, which takes a second.
        table = torch.empty(config["max_source_positions"], dim)
        self.embed_positions = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList([WhisperEncoderLayer(dim, heads, ffn) for _ in range(config["encoder_layers"])])
        self.layer_norm = nn.LayerNorm(dim)


def mel_frames(samples: int) -> int:
    """Number of mel frames of a clip: one per started 10 ms, and enough for one encoder state."""
    return max(STRIDE, -(-samples // HOP_SAMPLES))


def state_count(samples: int) -> int:
    """Number of encoder states (20 ms each) of a clip."""
    return (mel_frames(samples) - 1) // STRIDE + 1


def log_mel(waveform: Waveform, mels: int, window_s: float | None = None) -> Tensor:
    """Whisper's log-mel features of a clip.

    Args:
        waveform: Mono at 16 kHz.
        mels: Number of mel bins.
        window_s: Length in seconds to which the clip is padded with silence; None computes its own frames only. The
            dynamic range is normalised over the frames that are computed.
    Returns:
        `(mels, frames)`.
    """
    frames = mel_frames(len(waveform)) if window_s is None else round(window_s * SAMPLE_RATE) // HOP_SAMPLES
    length = frames * HOP_SAMPLES
    # With two hops of silence behind the clip, its last frame is what it would be inside a padded 30 s window.
    padded = np.pad(np.asarray(waveform, np.float32), (0, length - len(waveform) + 2 * HOP_SAMPLES))
    window = torch.hann_window(WINDOW_SAMPLES)
    spectrum = torch.stft(
        torch.from_numpy(padded)[None], WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True
    )
    power = (spectrum[..., :-1].abs() ** 2).contiguous()
    logarithm = (mel_filters(mels) @ power).clamp(min=1e-10).log10()[0]
    return ((torch.maximum(logarithm, logarithm.max() - 8.0) + 4.0) / 4.0)[:, :frames]


@lru_cache(maxsize=8)
def mel_filters(mels: int) -> Tensor:
    """Triangular filters on Slaney's mel scale from 0 to 8 kHz, each with an area of one (librosa's default).

    Args:
        mels: Number of filters.
    Returns:
        `(mels, bins)`, float32; bins are those of a spectrum of `WINDOW_SAMPLES` samples.
    """
    highest = SAMPLE_RATE / 2
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(highest), mels + 2))
    bins = np.linspace(0, highest, WINDOW_SAMPLES // 2 + 1)
    widths = np.diff(edges)
    distances = edges[None] - bins[:, None]
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    return torch.from_numpy(filters).float().T


def _hz_to_mel(frequency: float) -> float:
    """Slaney's mel of a frequency above `_LOG_FROM_HZ`."""
    return float(_LOG_FROM_MEL + np.log(frequency / _LOG_FROM_HZ) / _LOG_STEP)


def _mel_to_hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequencies in Hz of values on Slaney's mel scale."""
    logarithmic = _LOG_FROM_HZ * np.exp(_LOG_STEP * (mels - _LOG_FROM_MEL))
    return np.where(mels >= _LOG_FROM_MEL, logarithmic, 200.0 * mels / 3.0)


def layer_states(encoder: Any, mels: Sequence[Tensor]) -> list[Tensor]:
    """The states of every encoder layer for each clip.

    Args:
        encoder: A `WhisperEncoder`, ours or that of transformers; its weights and layers are used, masks and lengths
            are handled here.
        mels: Log-mel features of each clip, `(mels, frames)`.
    Returns:
        For each clip `(layers + 1, states, dim)`: after the convolutions, and after each layer; the last one with the
        final norm applied.
    Raises:
        ValueError: if a clip has more frames than the encoder has positions.
    """
    frames = [mel.shape[1] for mel in mels]
    max_frames = encoder.embed_positions.num_embeddings * STRIDE
    if max(frames) > max_frames:
        raise ValueError(f"clip has {max(frames)} mel frames, the encoder takes {max_frames}; cut it")
    weight = encoder.conv1.weight
    lengths = torch.tensor([(count - 1) // STRIDE + 1 for count in frames], device=weight.device)
    batch = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).mT.to(weight)
    frame_counts = torch.tensor(frames, device=weight.device)
    is_real_frame = torch.arange(batch.shape[2], device=weight.device)[None] < frame_counts[:, None]
    stem = gelu(encoder.conv1(batch)) * is_real_frame[:, None]
    hidden = gelu(encoder.conv2(stem)).mT
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    key_mask = None
    if not bool((lengths == lengths[0]).all()):
        key_mask = (torch.arange(hidden.shape[1], device=weight.device)[None] < lengths[:, None])[:, None, None]
    layers = [hidden]
    for layer in encoder.layers:
        hidden = run_encoder_layer(layer, hidden, key_mask)
        layers.append(hidden)
    layers[-1] = encoder.layer_norm(hidden)
    stacked = torch.stack(layers, 1)
    return [stacked[clip, :, :length] for clip, length in enumerate(lengths.tolist())]


def run_encoder_layer(layer: Any, hidden: Tensor, key_mask: Tensor | None) -> Tensor:
    """One pre-norm encoder layer; also for layers of transformers' other encoders that are named like Whisper's.

    Args:
        layer: The layer, of which the weights are used.
        hidden: Input states, `(batch, seq, dim)`.
        key_mask: True for keys that are real, broadcast to `(batch, heads, seq, seq)`; None if all are.
    Returns:
        Output states, `(batch, seq, dim)`.
    """
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(hidden)
    shape = (*hidden.shape[:2], attention.num_heads, -1)
    query, key, value = (
        projection(normed).view(shape).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    attended = scaled_dot_product_attention(query, key, value, key_mask).transpose(1, 2).reshape(hidden.shape)
    hidden = hidden + attention.out_proj(attended)
    return hidden + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(hidden))))
