"""Whisper's log-mel of a clip's real frames, with the numbers that a transformers processor gives inside its padded
window.

For families whose encoder masks or cuts padding, so that no more than the real frames (and a margin of padded ones)
needs to be computed.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.errors import ModelError
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.types import Waveform

SAMPLE_RATE = 16000
SETTINGS = ("preprocessor_config.json", "processor_config.json")


def load_feature_extractor(folder: Path | None, mels: int, window_s: int = 30) -> WhisperFeatureExtractor:
    """The checkpoint's feature extractor, or Whisper's own for `mels` bins and a window of `window_s` seconds where the
    folder has none."""
    if folder is not None and any((folder / name).exists() for name in SETTINGS):
        return WhisperFeatureExtractor.from_pretrained(str(folder))
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s)


def check_features(features: WhisperFeatureExtractor, mels: int, name: str) -> None:
    """Refuse features that the encoder was not made for.

    Raises:
        ModelError: if bins, rate or hop differ.
    """
    found = (features.feature_size, features.sampling_rate, features.hop_length)
    if found != (mels, SAMPLE_RATE, HOP_SAMPLES):
        raise ModelError(
            f"{name}: features are {found} (mels, Hz, hop), the encoder needs {(mels, SAMPLE_RATE, HOP_SAMPLES)}"
        )


def frame_count(samples: int) -> int:
    """Mel frames of a clip: one per started 10 ms.

    >>> frame_count(1600), frame_count(1601)
    (10, 11)
    """
    return -(-samples // HOP_SAMPLES)


def audio_spec(features: WhisperFeatureExtractor, mels: int, name: str, tokens_per_s: float) -> AudioSpec:
    """What an encoder hears that takes clips as long as the features' window.

    Raises:
        ModelError: as `check_features`.
    """
    check_features(features, mels, name)
    return AudioSpec(sample_rate=SAMPLE_RATE, max_s=float(features.chunk_length), tokens_per_s=tokens_per_s)


def unpadded_log_mel(
    wave: Waveform, features: WhisperFeatureExtractor, frames: int | None = None, *, window: int | None = None
) -> Tensor:
    """Log-mel `(mels, frames)`: the first `frames` frames of the clip padded with silence to the window.

    Args:
        wave: At most the window's length.
        features: The extractor.
        frames: How many; None takes the clip's own, those that start before its end.
        window: Frames of the window; None takes the extractor's.
    """
    kept = frame_count(len(wave)) if frames is None else frames
    # Two hops of silence behind the last kept frame: no analysis window reaches the reflected end that a padded clip
    # would not have. At the window's own end the reflection is the processor's too.
    length = min(window or features.nb_max_frames, kept + 2) * HOP_SAMPLES
    padded = np.pad(np.asarray(wave, np.float32), (0, length - len(wave)))
    out = features(padded, sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt")
    return torch.as_tensor(out.input_features[0])[:, :kept]
