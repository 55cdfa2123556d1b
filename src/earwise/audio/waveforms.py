"""Arrays of samples: lengths in seconds and samples, chunks, silence, mixing of channels, hashes, encoding."""

import hashlib
import io
import struct

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from earwise.audio.mixing import CANCELLED_POWER, Channel, loudest_channel
from earwise.errors import AudioError, ConfigError
from earwise.types import Waveform

SILENCE_PEAK = 1e-4  # -80 dBFS: below the noise of any microphone, above the dither of a 16-bit file
MAX_PEAK = 100.0  # a float file this loud holds integers that were never scaled


def num_samples(duration_s: float, sample_rate: int) -> int:
    """Convert seconds to samples, rounded to the nearest.

    >>> num_samples(0.5, 16000)
    8000
    """
    return round(duration_s * sample_rate)


def seconds(samples: int, sample_rate: int) -> float:
    """Convert samples to seconds.

    >>> seconds(8000, 16000)
    0.5
    """
    return samples / sample_rate


def chunks(waveform: Waveform, sample_rate: int, max_s: float) -> list[Waveform]:
    """Split a waveform into consecutive chunks of at most `max_s` seconds.

    Returns:
        As few chunks as possible, of equal length up to one sample, so that none is too short to be understood.
        Concatenated they are the waveform.
    Raises:
        ConfigError: if `max_s` is less than one sample.
    """
    step = num_samples(max_s, sample_rate)
    if step < 1:
        raise ConfigError(f"max_s {max_s} is less than one sample at {sample_rate} Hz; give seconds")
    return np.array_split(waveform, max(1, -(-len(waveform) // step)))


def is_silent(waveform: Waveform, threshold: float = SILENCE_PEAK) -> bool:
    """Whether no sample reaches `threshold` (full scale is 1)."""
    return len(waveform) == 0 or float(np.abs(waveform).max()) < threshold


def to_waveform(samples: ArrayLike, from_rate: int, sample_rate: int, *, channel: Channel = "mean") -> Waveform:
    """Convert an array of samples, as audio libraries return it, to a mono waveform at `sample_rate`.

    Args:
        samples: Array `(samples,)`, `(samples, channels)` or `(channels, samples)`; of two axes the shorter one is
            taken as the channels. Integers are divided by the full scale of their type.
        from_rate: Sample rate of the array, in Hz.
        sample_rate: Sample rate of the result, in Hz.
        channel: `mean` of all channels (the loudest where they cancel each other), or the `first` channel.
    Returns:
        Float32 `(samples,)`.
    Raises:
        AudioError: if the array is empty, has more than two axes, or contains NaN, infinity or values far beyond full
            scale.

    >>> to_waveform(np.array([0, 16384], dtype=np.int16), 16000, 16000).tolist()
    [0.0, 0.5]
    """
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or array.size == 0:
        raise AudioError(
            f"waveform of shape {array.shape}: give (samples,), (samples, channels) or (channels, samples)"
        )
    scale = float(-np.iinfo(array.dtype).min) if np.issubdtype(array.dtype, np.signedinteger) else 1.0
    mono = array if array.ndim == 1 else _mixed(array if array.shape[0] > array.shape[1] else array.T, channel)
    waveform: Waveform = np.ascontiguousarray(mono / scale, dtype=np.float32)
    check_samples(waveform, "waveform", "")
    return waveform if from_rate == sample_rate else soxr.resample(waveform, from_rate, sample_rate)


def check_samples(mono: Waveform, name: str, place: str) -> None:
    """Refuse samples that are no numbers, or integers that were never scaled to [-1, 1]."""
    peak = float(np.abs(mono).max())
    if not np.isfinite(peak):
        raise AudioError(f"{name}: holds NaN or infinite samples{place}; export it again")
    if peak > MAX_PEAK:
        raise AudioError(f"{name}: samples reach {peak:.0f} where [-1, 1] is expected; divide by full scale")


def waveform_sha256(waveform: Waveform) -> str:
    """SHA-256 of the samples (float32, little endian): identifies a model's input, whatever file it came from."""
    return hashlib.sha256(np.ascontiguousarray(waveform, dtype="<f4").tobytes()).hexdigest()


def encode_wav(waveform: Waveform, sample_rate: int) -> bytes:
    """Encode a mono 16-bit WAV file; samples outside [-1, 1] are clipped."""
    return _encode(waveform, sample_rate, "WAV", "PCM_16")


def encode_ogg(waveform: Waveform, sample_rate: int) -> bytes:
    """Encode a mono Ogg Vorbis file; samples outside [-1, 1] are clipped.

    The bytes differ from call to call, because each file gets its own serial number.
    """
    return _encode(waveform, sample_rate, "OGG", "VORBIS")


def encode_samples(samples: NDArray[np.float32], sample_rate: int) -> bytes:
    """Encode a WAV file that holds exactly these samples: 16 bits where they are multiples of 2^-15, otherwise floats.

    The same samples always give the same bytes. libsndfile's float files hold the time at which they were written.

    Args:
        samples: Float32 `(samples, channels)`.
        sample_rate: Hz.
    """
    scaled = samples.astype(np.float64) * 32768.0
    is_16_bit = bool(np.all((scaled == np.round(scaled)) & (scaled >= -32768) & (scaled <= 32767)))
    data = scaled.astype("<i2").tobytes() if is_16_bit else samples.astype("<f4").tobytes()
    width, kind, channels = (2, 1, samples.shape[1]) if is_16_bit else (4, 3, samples.shape[1])
    layout = struct.pack(
        "<HHIIHH", kind, channels, sample_rate, sample_rate * channels * width, channels * width, 8 * width
    )
    size = 4 + 8 + len(layout) + 8 + len(data)
    head = b"RIFF" + struct.pack("<I", size) + b"WAVE" + b"fmt " + struct.pack("<I", len(layout)) + layout
    return head + b"data" + struct.pack("<I", len(data)) + data


def _encode(waveform: Waveform, sample_rate: int, container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", samplerate=sample_rate, channels=1, format=container, subtype=codec) as sound:
        for start in range(
            0, len(waveform), sample_rate
        ):  # libsndfile's Vorbis encoder overflows its stack on long blocks
            sound.write(np.clip(waveform[start : start + sample_rate], -1.0, 1.0))
    return buffer.getvalue()


def _mixed(array: NDArray, channel: Channel) -> NDArray:
    """The mono samples of an array `(samples, channels)`."""
    if channel == "first":
        return array[:, 0]
    mono = array.mean(axis=1)
    power = np.square(array, dtype=np.float64).sum() / array.shape[1]
    cancels = np.square(mono, dtype=np.float64).sum() < CANCELLED_POWER * power
    return array[:, loudest_channel([array])] if cancels else mono
