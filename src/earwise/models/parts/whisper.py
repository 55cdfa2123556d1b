"""Run transformers' Whisper encoder on the frames that exist, and keep every layer.

Whisper itself was trained on 30 s windows without a mask. Here a batch of clips of different lengths is run so that
each clip comes out as if it had been run alone, untouched by its neighbours' lengths: mel frames, first convolution and
attention keys beyond a clip's end are zeroed or masked. Whether a model is used to trimmed input is the model's
business (the embedded one is trained that way).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earwise.types import Waveform

HOP_SAMPLES = 160  # 10 ms at 16 kHz
STRIDE = 2  # of the second convolution: one state per 20 ms


def build_encoder(config: dict[str, int]) -> WhisperEncoder:
    """An encoder of the given sizes with no weights yet (on the meta device unless told otherwise)."""
    return WhisperEncoder(
        WhisperConfig(**config, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0)
    )


def mel_frames(samples: int) -> int:
    """Mel frames of a clip: one per started 10 ms, at least one encoder state's worth."""
    return max(STRIDE, -(-samples // HOP_SAMPLES))


def states(samples: int) -> int:
    """Encoder states (20 ms each) of a clip."""
    return (mel_frames(samples) - 1) // STRIDE + 1


def log_mel(wave: Waveform, extractor: WhisperFeatureExtractor, window_s: float | None = None) -> Tensor:
    """Whisper's log-mel, `(mels, frames)`: of the real samples, or padded with silence to a window of `window_s`
    seconds; the dynamic range is taken over what is given."""
    frames = mel_frames(len(wave)) if window_s is None else round(window_s * 16000) // HOP_SAMPLES
    want = frames * HOP_SAMPLES
    # Two hops of silence behind the clip let the last window see what it would see inside a padded 30 s window.
    padded = np.pad(np.asarray(wave, np.float32), (0, want - len(wave) + 2 * HOP_SAMPLES))
    features = extractor(
        padded, sampling_rate=16000, padding=False, truncation=False, return_tensors="pt"
    ).input_features[0]
    return torch.as_tensor(features)[:, : want // HOP_SAMPLES]


def layer_states(encoder: WhisperEncoder, mels: Sequence[Tensor]) -> list[Tensor]:
    """All layers' states of each clip.

    Args:
        encoder: The encoder; its own weights and layers are used, only masks and lengths are ours.
        mels: `(mels, frames)` per clip.
    Returns:
        Per clip `(layers + 1, states, dim)`: after the stem, after each layer; the last one with the final norm
        applied.
    Raises:
        ValueError: if a clip has more frames than the encoder has positions.
    """
    frames = [mel.shape[1] for mel in mels]
    limit = encoder.embed_positions.num_embeddings * STRIDE
    if max(frames) > limit:
        raise ValueError(f"clip has {max(frames)} mel frames, the encoder hears {limit}")
    weight = encoder.conv1.weight
    lengths = torch.tensor([(n - 1) // STRIDE + 1 for n in frames], device=weight.device)
    batch = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).mT.to(weight)
    real = (
        torch.arange(batch.shape[2], device=weight.device)[None] < torch.tensor(frames, device=weight.device)[:, None]
    )
    stem = gelu(encoder.conv1(batch)) * real[:, None]
    hidden = gelu(encoder.conv2(stem)).mT
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    same = bool((lengths == lengths[0]).all())
    seen = (
        None if same else (torch.arange(hidden.shape[1], device=weight.device)[None] < lengths[:, None])[:, None, None]
    )
    layers = [hidden]
    for layer in encoder.layers:
        hidden = run_encoder_layer(layer, hidden, seen)
        layers.append(hidden)
    layers[-1] = encoder.layer_norm(hidden)
    stacked = torch.stack(layers, 1)
    return [stacked[i, :, :n] for i, n in enumerate(lengths.tolist())]


def run_encoder_layer(layer: Any, hidden: Tensor, seen: Tensor | None) -> Tensor:
    """One pre-norm encoder layer with its own weights, on exact lengths; also for the layers of transformers' other
    encoders that are named like Whisper's.

    Args:
        layer: Its weights.
        hidden: `(batch, seq, dim)`.
        seen: True where a key is real, broadcast to `(batch, heads, seq, seq)`; None for all of them.
    """
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(hidden)
    shape = (*hidden.shape[:2], attention.num_heads, -1)
    query, key, value = (
        proj(normed).view(shape).transpose(1, 2) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).reshape(hidden.shape)
    hidden = hidden + attention.out_proj(mixed)
    return hidden + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(hidden))))
