"""Sound files into waveforms: decode, downmix, resample; seconds and samples are converted here and nowhere else.

First step of the flow: everything above sees `Waveform` (mono float32) only. No torch. Files are read in blocks through
a streaming resampler (equal to resampling in one go), and the header is looked at first: a file that is going to be
refused is not decoded, and the cost in memory is that of the result. Sound longer than a model hears is never cut in
silence: see `LongAudio`.
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

from earwise.errors import AudioError, ConfigError
from earwise.types import Waveform

LongAudio = Literal["error", "truncate", "chunk"]
LONG_AUDIO: tuple[LongAudio, ...] = ("error", "truncate", "chunk")
Channel = Literal["mean", "first"]

SILENCE_PEAK = 1e-4  # -80 dBFS: below the noise of any microphone, above the dither of a 16-bit file
MAX_PEAK = 100.0  # a float file this loud holds integers that were never scaled
BLOCK_SAMPLES = 1 << 18  # values read at a time, all channels together (1 MiB)


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """What a model takes in."""

    sample_rate: int
    """Hz."""
    max_s: float
    """Longest clip that is heard whole, seconds."""
    tokens_per_s: float
    """Audio tokens per second of sound."""
    long_audio: LongAudio = "error"
    """What to do with a longer one."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says."""

    sample_rate: int
    channels: int
    samples: int
    """Per channel, at the file's own rate."""
    duration_s: float


def num_samples(duration_s: float, sample_rate: int) -> int:
    """Seconds to samples, to the nearest.

    >>> num_samples(0.5, 16000)
    8000
    """
    return round(duration_s * sample_rate)


def seconds(samples: int, sample_rate: int) -> float:
    """Samples to seconds.

    >>> seconds(8000, 16000)
    0.5
    """
    return samples / sample_rate


def probe(path: Path) -> AudioInfo:
    """Read the header only.

    Raises:
        AudioError: if the file is missing, empty, truncated, holds no samples, or is no audio.
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
        path: Anything libsndfile reads (wav, flac, ogg, mp3, aiff ...), any rate, any number of channels.
        sample_rate: Hz of the result.
        long_audio: For a file longer than `max_s`: `error` refuses it before decoding, `truncate` decodes its first
            `max_s` seconds, `chunk` decodes it whole for `chunks` (`probe(path).duration_s > max_s` counts them).
        max_s: Longest clip in seconds; None for no limit.
        channel: `mean` of all channels, or the `first` (R1-AQA's loader, papers/r1-aqa.md, section 3).
    Returns:
        Float32 `(samples,)` with `num_samples(duration, sample_rate)` samples, at least one. A silent file is no error
        here (see `is_silent`).
    Raises:
        AudioError: if the file is missing, empty, truncated, too long, no audio, or holds no samples, NaN or infinity.
        ConfigError: if `long_audio` or `channel` is none of the above.
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
    """`decode` for a file that came over a wire; `name` stands for it in errors."""
    if not data:
        raise AudioError(f"{name}: is empty (0 bytes); send it again")
    _check_whole(io.BytesIO(data), len(data), name)
    return _decode(io.BytesIO(data), name, sample_rate, long_audio, max_s, channel)


def chunks(wave: Waveform, sample_rate: int, max_s: float) -> list[Waveform]:
    """Cut a waveform into consecutive pieces of at most `max_s` seconds, as few as can be and equally long (a sample
    more or less), so that none is too short to be heard; joined again they are the waveform.

    Raises:
        ConfigError: if `max_s` is less than one sample.
    """
    step = num_samples(max_s, sample_rate)
    if step < 1:
        raise ConfigError(f"max_s {max_s} is less than one sample at {sample_rate} Hz; give seconds")
    return np.array_split(wave, max(1, -(-len(wave) // step)))


def is_silent(wave: Waveform, threshold: float = SILENCE_PEAK) -> bool:
    """True if no sample reaches `threshold` (of full scale 1)."""
    return len(wave) == 0 or float(np.abs(wave).max()) < threshold


def audio_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, hexadecimal: names a clip in results and finds copies.

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


def wave_hash(wave: Waveform) -> str:
    """SHA-256 of the samples (float32, little endian): names what a model heard, whatever file it came from."""
    return hashlib.sha256(np.ascontiguousarray(wave, dtype="<f4").tobytes()).hexdigest()


def encode_wav(wave: Waveform, sample_rate: int) -> bytes:
    """A mono 16-bit WAV file; samples outside [-1, 1] are clipped."""
    return _encode(wave, sample_rate, "WAV", "PCM_16")


def encode_ogg(wave: Waveform, sample_rate: int) -> bytes:
    """A mono Ogg Vorbis file; samples outside [-1, 1] are clipped. The serial number, so the bytes, differ by call."""
    return _encode(wave, sample_rate, "OGG", "VORBIS")


def _encode(wave: Waveform, sample_rate: int, container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", samplerate=sample_rate, channels=1, format=container, subtype=codec) as sound:
        for start in range(0, len(wave), sample_rate):  # libsndfile's Vorbis encoder overflows its stack on long blocks
            sound.write(np.clip(wave[start : start + sample_rate], -1.0, 1.0))
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
                f"{name}: lasts {info.duration_s:.2f} s, the longest allowed is {max_s:g} s; "
                "cut it, or choose long_audio: truncate or chunk (--long-audio)"
            )
        wanted = info.samples if limit is None or long_audio != "truncate" else min(info.samples, limit)
        stream = soxr.ResampleStream(info.sample_rate, sample_rate, 1, dtype="float32")
        done, parts = 0, []
        for block in _blocks(sound, wanted, name):
            mono = _mono(block) if channel == "mean" else np.ascontiguousarray(block[:, 0])
            peak = float(np.abs(mono).max())
            if not np.isfinite(peak):
                where = f"near {seconds(done, info.sample_rate):.2f} s"
                raise AudioError(f"{name}: holds NaN or infinite samples {where}; export it again")
            if peak > MAX_PEAK:
                raise AudioError(f"{name}: samples reach {peak:.0f} where [-1, 1] is expected; divide by full scale")
            done += len(mono)
            if info.sample_rate != sample_rate:
                mono = stream.resample_chunk(mono, last=done >= wanted)
            parts.append(mono)
    # soxr drops the last fraction of a very short clip: the length is the one that `num_samples` says, and never 0
    length = max(1, num_samples(seconds(wanted, info.sample_rate), sample_rate))
    wave = np.concatenate(parts)[:length]
    return np.pad(wave, (0, length - len(wave))) if len(wave) < length else wave


def _blocks(sound: Any, wanted: int, name: str) -> Iterator[np.ndarray]:
    """Yield float32 blocks `(samples, channels)` until exactly `wanted` samples are read."""
    step, done = max(1, BLOCK_SAMPLES // sound.channels), 0
    while done < wanted:
        try:
            block = sound.read(min(step, wanted - done), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{name}: {_damaged(done, wanted, sound.samplerate)} ({error})") from error
        if not len(block):
            raise AudioError(f"{name}: {_damaged(done, wanted, sound.samplerate)}")
        done += len(block)
        yield block


def _mono(block: np.ndarray) -> Waveform:
    """The mean of all channels `(samples,)`; numpy's own is slow over an axis of two, and gives the same bits."""
    if block.shape[1] == 2:
        return (block[:, 0] + block[:, 1]) * np.float32(0.5)
    return block[:, 0].copy() if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _damaged(done: int, wanted: int, rate: int) -> str:
    return f"is truncated or damaged after {seconds(done, rate):.2f} of {seconds(wanted, rate):.2f} s; fetch it again"


def _open(handle: BinaryIO, name: str) -> Any:
    try:
        sound = soundfile.SoundFile(handle)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:  # TypeError: a name that ends in .raw
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
    """Refuse what is no readable, whole file, before libsndfile sees it."""
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
    """Find a cut-off end, which libsndfile passes over for these containers by shortening the clip.

    RIFF and FORM files state their size; an Ogg page states its own. Streamed WAV files state 0 or the largest number.
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
    """True if the last Ogg page (at most 65,307 bytes) promises more bytes than the file has."""
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
