"""Whisper's log-mel features of a clip without its padding, equal to those of a transformers processor with padding.

For families whose encoder masks or cuts padding, so that only the real frames (and a margin of padded ones) have to be
computed.
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
CONFIG_FILES = ("preprocessor_config.json", "processor_config.json")


def load_feature_extractor(folder: Path | None, mels: int, window_s: int = 30) -> WhisperFeatureExtractor:
    """The feature extractor of a checkpoint, or Whisper's own if there is none.

    Args:
        folder: Folder of the checkpoint, or None.
        mels: Number of mel bins of Whisper's own extractor.
        window_s: Its window in seconds.
    """
    if folder is not None and any((folder / name).exists() for name in CONFIG_FILES):
        return WhisperFeatureExtractor.from_pretrained(str(folder))
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s)


def check_features(features: WhisperFeatureExtractor, mels: int, name: str) -> None:
    """Compare a feature extractor with what the encoder was trained on.

    Args:
        features: The extractor.
        mels: Number of mel bins of the encoder.
        name: Name of the model, for the error message.
    Raises:
        ModelError: if the number of bins, the sample rate or the hop length differs.
    """
    config = (features.feature_size, features.sampling_rate, features.hop_length)
    expected = (mels, SAMPLE_RATE, HOP_SAMPLES)
    if config != expected:
        raise ModelError(
            f"{name}: features are {config} (mels, Hz, hop), the encoder needs {expected}; "
            "take the preprocessor config from the checkpoint of the encoder"
        )


def frame_count(samples: int) -> int:
    """Number of mel frames of a clip: one per started 10 ms.

    >>> frame_count(1600), frame_count(1601)
    (10, 11)
    """
    return -(-samples // HOP_SAMPLES)


def audio_spec(features: WhisperFeatureExtractor, mels: int, name: str, tokens_per_s: float) -> AudioSpec:
    """The audio input of an encoder that takes clips as long as the extractor's window.

    Args:
        features: The extractor, which is checked.
        mels: Number of mel bins of the encoder.
        name: Name of the model, for the error message.
        tokens_per_s: Audio tokens per second.
    Raises:
        ModelError: see `check_features`.
    """
    check_features(features, mels, name)
    return AudioSpec(sample_rate=SAMPLE_RATE, max_s=float(features.chunk_length), tokens_per_s=tokens_per_s)


def unpadded_log_mel(
    waveform: Waveform, features: WhisperFeatureExtractor, frames: int | None = None, *, window: int | None = None
) -> Tensor:
    """The first frames of the log-mel features of a clip that is padded with silence to the window.

    Args:
        waveform: The clip, at most as long as the window.
        features: The extractor.
        frames: Number of frames; None takes those that start before the end of the clip.
        window: Frames of the window; None takes the extractor's.
    Returns:
        Log-mel features, `(mels, frames)`.
    """
    count = frame_count(len(waveform)) if frames is None else frames
    # Two hops of silence behind the last frame: then no analysis window reaches the reflected end, which a padded clip
    # would not have there. At the end of the window itself, the processor reflects as well.
    length = min(window or features.nb_max_frames, count + 2) * HOP_SAMPLES
    padded = np.pad(np.asarray(waveform, np.float32), (0, length - len(waveform)))
    out = features(padded, sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt")
    return torch.as_tensor(out.input_features[0])[:, :count]
