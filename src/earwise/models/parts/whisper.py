"""transformers' Whisper encoder on clips of different lengths, with the states of all its layers.

Whisper was trained on 30 s windows without an attention mask. Here each clip of a batch gives the result that it would
give alone: mel frames, the output of the first convolution, and attention keys beyond the clip's end are zeroed or
masked. Whether a model works with clips that are not padded to 30 s depends on its training (the embedded model is
trained that way).
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
STRIDE = 2  # stride of the second convolution: one encoder state per 20 ms


def build_encoder(config: dict[str, int]) -> WhisperEncoder:
    """A Whisper encoder of these sizes (fields of `WhisperConfig`), without dropout, on torch's default device."""
    return WhisperEncoder(
        WhisperConfig(**config, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0)
    )


def mel_frames(samples: int) -> int:
    """Number of mel frames of a clip: one per started 10 ms, and enough for one encoder state."""
    return max(STRIDE, -(-samples // HOP_SAMPLES))


def state_count(samples: int) -> int:
    """Number of encoder states (20 ms each) of a clip."""
    return (mel_frames(samples) - 1) // STRIDE + 1


def log_mel(waveform: Waveform, extractor: WhisperFeatureExtractor, window_s: float | None = None) -> Tensor:
    """Whisper's log-mel features of a clip.

    Args:
        waveform: Mono at 16 kHz.
        extractor: Whisper's feature extractor.
        window_s: Length in seconds to which the clip is padded with silence; None computes its own frames only. The
            dynamic range is normalised over the frames that are computed.
    Returns:
        `(mels, frames)`.
    """
    frames = mel_frames(len(waveform)) if window_s is None else round(window_s * 16000) // HOP_SAMPLES
    length = frames * HOP_SAMPLES
    # With two hops of silence behind the clip, its last frame is what it would be inside a padded 30 s window.
    padded = np.pad(np.asarray(waveform, np.float32), (0, length - len(waveform) + 2 * HOP_SAMPLES))
    features = extractor(
        padded, sampling_rate=16000, padding=False, truncation=False, return_tensors="pt"
    ).input_features[0]
    return torch.as_tensor(features)[:, :frames]


def layer_states(encoder: WhisperEncoder, mels: Sequence[Tensor]) -> list[Tensor]:
    """The states of every encoder layer for each clip.

    Args:
        encoder: The encoder; its weights and layers are used, masks and lengths are handled here.
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
