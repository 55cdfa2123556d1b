"""Audio files to waveforms: decode, downmix, resample, and convert between seconds and samples. No torch.

First step of the data flow: everything above works on `Waveform` (mono float32) only. A file is read in blocks through
a streaming resampler, which gives the same samples as resampling in one go, so memory grows with the result only. The
header is checked first: a file that is refused is not decoded. Audio longer than a model accepts is never cut silently,
see `LongAudio`.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike

from earwise.errors import AudioError, ConfigError
from earwise.types import Waveform

LongAudio = Literal["error", "truncate", "chunk"]
"""Policy for a clip longer than the model accepts: refuse it, use its beginning, or split it into chunks."""
LONG_AUDIO: tuple[LongAudio, ...] = ("error", "truncate", "chunk")
LONG_AUDIO_REMEDY = "cut it, or set long_audio (in a recipe) or --long-audio (on the command line) to truncate or chunk"
"""End of every message about a clip that is too long."""
Channel = Literal["mean", "first"]
Sound = str | os.PathLike[str] | tuple[ArrayLike, int]
"""One clip: the path of an audio file, or an array of samples (see `to_waveform`) and its sample rate in Hz."""

SILENCE_PEAK = 1e-4  # -80 dBFS: below the noise of any microphone, above the dither of a 16-bit file
MAX_PEAK = 100.0  # a float file this loud holds integers that were never scaled
BLOCK_SAMPLES = 1 << 18  # values read at a time, all channels together (1 MiB)


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """The audio input of a model."""

    sample_rate: int
    """Hz."""
    max_s: float
    """Longest clip that the model accepts, in seconds."""
    tokens_per_s: float
    """Audio tokens per second."""
    long_audio: LongAudio = "error"
    """What to do with a longer clip."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """The header of an audio file."""

    sample_rate: int
    channels: int
    samples: int
    """Samples per channel, at the file's own sample rate."""
    duration_s: float


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


def probe(path: Path) -> AudioInfo:
    """Read the header of an audio file, without decoding it.

    Raises:
        AudioError: if the file is missing, empty or truncated, has no samples, or is not audio.
    """
    _check_file(path)
    with path.open("rb") as handle, _open(handle, str(path)) as sound:
        return _info(sound)


def decode(
    path: Path,
    sample_rate: int = 16000,
    *,
    long_audio: LongAudio = "error",
    max_s: float | None = None,
    channel: Channel = "mean",
) -> Waveform:
    """Decode a file to mono at `sample_rate`.

    Args:
        path: File in any format that libsndfile reads (wav, flac, ogg, mp3, aiff ...), with any sample rate and number
            of channels.
        sample_rate: Sample rate of the result, in Hz.
        long_audio: For a file longer than `max_s`: `error` refuses it before decoding, `truncate` decodes its first
            `max_s` seconds, `chunk` decodes all of it, to be split by `chunks`.
        max_s: Longest clip in seconds; None for no limit.
        channel: `mean` of all channels, or the `first` channel (as R1-AQA's released data loader does).
    Returns:
        Float32 `(samples,)` with `num_samples(duration, sample_rate)` samples, at least one. A silent file is not an
        error here; see `is_silent`.
    Raises:
        AudioError: if the file is missing, empty, truncated, too long or not audio, or contains no samples, NaN or
            infinity.
        ConfigError: if `long_audio` or `channel` has another value.
    """
    _check_file(path)
    with path.open("rb") as handle:
        return _decode(handle, str(path), sample_rate, long_audio, max_s, channel)


def decode_bytes(
    data: bytes,
    name: str = "upload",
    sample_rate: int = 16000,
    *,
    long_audio: LongAudio = "error",
    max_s: float | None = None,
    channel: Channel = "mean",
) -> Waveform:
    """Decode the bytes of a file as `decode` does; `name` stands for the file in error messages."""
    if not data:
        raise AudioError(f"{name}: is empty (0 bytes); send it again")
    _check_whole(io.BytesIO(data), len(data), name)
    return _decode(io.BytesIO(data), name, sample_rate, long_audio, max_s, channel)


def to_waveform(samples: ArrayLike, from_rate: int, sample_rate: int) -> Waveform:
    """Convert an array of samples, as audio libraries return it, to a mono waveform at `sample_rate`.

    Args:
        samples: Array `(samples,)`, `(samples, channels)` or `(channels, samples)`; of two axes the shorter one is
            taken as the channels, which are averaged. Integers are divided by the full scale of their type.
        from_rate: Sample rate of the array, in Hz.
        sample_rate: Sample rate of the result, in Hz.
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
    mono = array if array.ndim == 1 else array.mean(axis=int(np.argmin(array.shape)))
    waveform: Waveform = np.ascontiguousarray(mono / scale, dtype=np.float32)
    _check_samples(waveform, "waveform", "")
    return waveform if from_rate == sample_rate else soxr.resample(waveform, from_rate, sample_rate)


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


def audio_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file, hexadecimal: identifies a clip in results and finds copies.

    Raises:
        AudioError: if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise AudioError(_unreadable(path, error)) from error
    return digest.hexdigest()


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


def _encode(waveform: Waveform, sample_rate: int, container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", samplerate=sample_rate, channels=1, format=container, subtype=codec) as sound:
        for start in range(
            0, len(waveform), sample_rate
        ):  # libsndfile's Vorbis encoder overflows its stack on long blocks
            sound.write(np.clip(waveform[start : start + sample_rate], -1.0, 1.0))
    return buffer.getvalue()


def _decode(
    handle: BinaryIO, name: str, sample_rate: int, long_audio: LongAudio, max_s: float | None, channel: Channel
) -> Waveform:
    if long_audio not in LONG_AUDIO:
        raise ConfigError(f"long_audio {long_audio!r} is none of {', '.join(LONG_AUDIO)}")
    if channel not in ("mean", "first"):
        raise ConfigError(f"channel {channel!r} is none of mean, first")
    with _open(handle, name) as sound:
        info = _info(sound)
        limit = None if max_s is None else num_samples(max_s, info.sample_rate)
        if limit is not None and info.samples > limit and long_audio == "error":
            raise AudioError(
                f"{name}: lasts {info.duration_s:.2f} s, the longest allowed is {max_s:g} s; {LONG_AUDIO_REMEDY}"
            )
        num_read = info.samples if limit is None or long_audio != "truncate" else min(info.samples, limit)
        stream = soxr.ResampleStream(info.sample_rate, sample_rate, 1, dtype="float32")
        num_done, parts = 0, []
        for block in _blocks(sound, num_read, name):
            mono = _mono(block) if channel == "mean" else np.ascontiguousarray(block[:, 0])
            _check_samples(mono, name, f" near {seconds(num_done, info.sample_rate):.2f} s")
            num_done += len(mono)
            if info.sample_rate != sample_rate:
                mono = stream.resample_chunk(mono, last=num_done >= num_read)
            parts.append(mono)
    # soxr drops the last fraction of a very short clip; the length is that of `num_samples`, and never 0
    length = max(1, num_samples(seconds(num_read, info.sample_rate), sample_rate))
    waveform = np.concatenate(parts)[:length]
    return np.pad(waveform, (0, length - len(waveform))) if len(waveform) < length else waveform


def _check_samples(mono: Waveform, name: str, place: str) -> None:
    """Refuse samples that are no numbers, or integers that were never scaled to [-1, 1]."""
    peak = float(np.abs(mono).max())
    if not np.isfinite(peak):
        raise AudioError(f"{name}: holds NaN or infinite samples{place}; export it again")
    if peak > MAX_PEAK:
        raise AudioError(f"{name}: samples reach {peak:.0f} where [-1, 1] is expected; divide by full scale")


def _blocks(sound: Any, num_read: int, name: str) -> Iterator[np.ndarray]:
    """Yield float32 blocks `(samples, channels)` until exactly `num_read` samples per channel are read."""
    step, num_done = max(1, BLOCK_SAMPLES // sound.channels), 0
    while num_done < num_read:
        try:
            block = sound.read(min(step, num_read - num_done), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{name}: {_damaged(num_done, num_read, sound.samplerate)} ({error})") from error
        if not len(block):
            raise AudioError(f"{name}: {_damaged(num_done, num_read, sound.samplerate)}")
        num_done += len(block)
        yield block


def _mono(block: np.ndarray) -> Waveform:
    """Mean of all channels, `(samples,)`. For two channels a sum is faster than numpy's mean, with the same bits."""
    if block.shape[1] == 2:
        return (block[:, 0] + block[:, 1]) * np.float32(0.5)
    return block[:, 0].copy() if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _damaged(num_done: int, num_read: int, rate: int) -> str:
    position = f"{seconds(num_done, rate):.2f} of {seconds(num_read, rate):.2f} s"
    return f"is truncated or damaged after {position}; fetch it again"


def _open(handle: BinaryIO, name: str) -> Any:
    try:
        sound = soundfile.SoundFile(handle)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:  # TypeError: the name ends in .raw
        raise AudioError(
            f"{name}: is no audio that can be read; convert it to wav, flac, ogg or mp3 (ffmpeg -i IN OUT.wav)"
        ) from error
    if sound.frames <= 0:
        sound.close()
        raise AudioError(f"{name}: holds no samples (0 s of sound); record or export it again")
    return sound


def _info(sound: Any) -> AudioInfo:
    return AudioInfo(sound.samplerate, sound.channels, sound.frames, seconds(sound.frames, sound.samplerate))


def _check_file(path: Path) -> None:
    """Refuse a file that is missing, empty, unreadable or cut off, before libsndfile opens it."""
    if not path.exists():
        raise AudioError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; name an audio file in it")
    try:
        size = path.stat().st_size
        if size == 0:
            raise AudioError(f"{path}: is empty (0 bytes); fetch or export it again")
        with path.open("rb") as handle:
            _check_whole(handle, size, str(path))
    except OSError as error:
        raise AudioError(_unreadable(path, error)) from error


def _check_whole(handle: BinaryIO, size: int, name: str) -> None:
    """Refuse a file whose end is cut off; for these containers libsndfile would silently shorten the clip.

    RIFF and FORM files state their size, and an Ogg page states its own. Streamed WAV files state 0 or the largest
    number.
    """
    head = handle.read(12)
    stated = 0
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        stated = int.from_bytes(head[4:8], "little")
    elif head[:4] == b"FORM":
        stated = int.from_bytes(head[4:8], "big")
    if 0 < stated < 0x7FFF_F000 and stated + 8 > size + 1:  # +1: some writers leave out the last padding byte
        raise AudioError(f"{name}: is truncated ({size:,} of {stated + 8:,} bytes); fetch it again")
    if head[:4] == b"OggS" and _ogg_is_torn(handle, size):
        raise AudioError(f"{name}: is truncated (its last page is cut off); fetch it again")


def _ogg_is_torn(handle: BinaryIO, size: int) -> bool:
    """Whether the last Ogg page (at most 65,307 bytes) states more bytes than the file has."""
    start = max(0, size - 65_536)
    handle.seek(start, os.SEEK_SET)
    tail = handle.read()
    page = tail.rfind(b"OggS\x00")
    if page < 0:
        return True
    lacing = tail[page + 27 : page + 27 + tail[page + 26]] if len(tail) > page + 26 else b""
    return len(tail) <= page + 26 or len(lacing) < tail[page + 26] or page + 27 + len(lacing) + sum(lacing) > len(tail)


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
