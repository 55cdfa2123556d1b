"""Audio files to waveforms: decode to the end, downmix, resample, cut to a segment.

A file is examined first (`audio/parts.py`); each part is then read in blocks (`audio/readers.py`) through a streaming
resampler, which gives the same samples as resampling in one go, so memory grows with the result only. What is too long
is refused before it is decoded where its length is known. Audio longer than a model accepts is never cut silently, see
`LongAudio`.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import ArrayLike

from earwise.audio.mixing import Block, Channel, Mixer, loudest_channel, warn_of_cancelling
from earwise.audio.options import LONG_AUDIO_REMEDY, DecodeOptions, LongAudio, too_long_message
from earwise.audio.parts import find_parts
from earwise.audio.readers import STATED_LENGTH_TOLERANCE_S, SoundReader, open_part
from earwise.audio.waveforms import check_samples, num_samples, seconds
from earwise.errors import AudioError
from earwise.types import AudioClip, Waveform

Sound = str | os.PathLike[str] | AudioClip | tuple[ArrayLike, int]
"""One clip: the path of an audio file, a segment of one, or an array of samples (see `to_waveform`) and its sample rate
in Hz."""
MIN_RATE, MAX_RATE = 500, 1_000_000
"""Sample rates of files, in Hz. What lies outside is a damaged header, and would take hours or gigabytes."""
SEGMENT_TOLERANCE_S = 0.05
"""A segment may end this much after its file: lengths in data sets are rounded, and those of lossy files include
padding."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """The length and layout of an audio file."""

    sample_rate: int
    channels: int
    samples: int
    """Samples per channel, at the file's own sample rate."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class DecodedSound:
    """One decoded sound."""

    waveform: Waveform
    """Float32 `(samples,)` at the sample rate of the options."""
    is_truncated: bool
    """Whether more sound follows, which `truncate` has left out."""


def probe(path: Path) -> AudioInfo:
    """The length and layout of an audio file, decoding it only where its length is not known otherwise.

    Raises:
        AudioError: if the file is missing, empty or truncated, has no samples, or is not audio.
    """
    with _open_file(path) as readers:
        samples = [reader.count() for reader in readers]
        duration_s = sum(seconds(count, reader.sample_rate) for count, reader in zip(samples, readers, strict=True))
        first = readers[0]
        if duration_s == 0:
            raise AudioError(f"{path}: {_NO_SAMPLES}")
        total = sum(samples) if len(readers) == 1 else num_samples(duration_s, first.sample_rate)
        return AudioInfo(first.sample_rate, first.channels, total, duration_s)


def clip_duration(clip: AudioClip) -> float:
    """Length of a clip in seconds.

    Raises:
        AudioError: as `probe`, and if the segment lies outside the file.
    """
    duration_s = probe(clip.path).duration_s
    _check_segment(clip, duration_s, str(clip))
    return min(duration_s, duration_s if clip.end is None else clip.end) - clip.start


def decode(
    clip: Path | AudioClip,
    sample_rate: int = 16000,
    *,
    long_audio: LongAudio = "error",
    max_s: float | None = None,
    channel: Channel = "mean",
) -> Waveform:
    """Decode a file, or a segment of one, to mono at `sample_rate`.

    Args:
        clip: File in any format that libsndfile or FFmpeg read, with any sample rate and number of channels.
        sample_rate: See `DecodeOptions`, also for the other arguments.
        long_audio: What to do with a clip longer than `max_s`.
        max_s: Longest clip in seconds; None for no limit.
        channel: What several channels become.
    Returns:
        Float32 `(samples,)` with `num_samples(duration, sample_rate)` samples, at least one. A silent file is not an
        error here; see `is_silent`.
    Raises:
        AudioError: if the file is missing, empty, truncated, damaged, too long or not audio, contains no samples, NaN
            or infinity, or the segment lies outside it.
        ConfigError: if `long_audio` or `channel` has another value.
    """
    return decode_clip(clip, DecodeOptions(sample_rate, long_audio, max_s, channel)).waveform


def decode_clip(clip: Path | AudioClip, options: DecodeOptions) -> DecodedSound:
    """Decode as `decode` does, and tell whether the sound was truncated."""
    clip = clip if isinstance(clip, AudioClip) else AudioClip(clip)
    with _open_file(clip.path) as readers:
        return _decode_readers(readers, clip, options, str(clip))


def decode_bytes(
    data: bytes,
    name: str = "upload",
    sample_rate: int = 16000,
    *,
    max_s: float | None = None,
    channel: Channel = "mean",
    long_audio_remedy: str = LONG_AUDIO_REMEDY,
) -> Waveform:
    """Decode the bytes of a file as `decode` does; one that is too long is refused.

    Args:
        data: The file.
        name: Stands for the file in error messages.
        sample_rate: Sample rate of the result, in Hz.
        max_s: Longest clip in seconds; None for no limit.
        channel: What several channels become.
        long_audio_remedy: End of the message about a sound that is too long: what its sender can do.
    Raises:
        AudioError: as `decode`.
    """
    if not data:
        raise AudioError(f"{name}: is empty (0 bytes); send it again")
    options = DecodeOptions(sample_rate, "error", max_s, channel, long_audio_remedy)
    with _open_handle(io.BytesIO(data), len(data), name) as readers:
        return _decode_readers(readers, AudioClip(Path(name)), options, name).waveform


def read_samples(clip: AudioClip) -> tuple[Block, int]:
    """All channels of a clip at the file's own sample rate, for a copy of a segment.

    Returns:
        Float32 `(samples, channels)`, and the sample rate in Hz.
    Raises:
        AudioError: as `decode`; also for a file of several sounds that differ in sample rate or channels.
    """
    with _open_file(clip.path) as readers:
        first = readers[0]
        if any((r.sample_rate, r.channels) != (first.sample_rate, first.channels) for r in readers):
            raise AudioError(f"{clip.path}: changes its sample rate or channels; convert it (ffmpeg -i IN OUT.wav)")
        samples = np.concatenate([block for reader in readers for block in reader.blocks(0)])
    _check_segment(clip, seconds(len(samples), first.sample_rate), str(clip))
    end = None if clip.end is None else num_samples(clip.end, first.sample_rate)
    return samples[num_samples(clip.start, first.sample_rate) : end], first.sample_rate


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


def clip_sha256(clip: AudioClip) -> str:
    """SHA-256 that identifies a clip: that of the file's bytes, and for a segment also of its seconds."""
    sha256 = audio_sha256(clip.path)
    if not clip.is_segment:
        return sha256
    return hashlib.sha256(f"{sha256} {clip.start!r} {clip.end!r}".encode()).hexdigest()


# Opening --------------------------------------------------------------------------------------------------------------

_NO_SAMPLES = "holds no samples (0 s of sound); record or export it again"


@contextmanager
def _open_file(path: Path) -> Iterator[list[SoundReader]]:
    """The sounds that a file holds, in order, each open."""
    if not path.exists():
        raise AudioError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; name an audio file in it")
    try:
        handle = path.open("rb")
    except OSError as error:
        raise AudioError(_unreadable(path, error)) from error
    with handle:
        try:
            size = handle.seek(0, os.SEEK_END)
            if size == 0:
                raise AudioError(f"{path}: is empty (0 bytes); fetch or export it again")
            with _open_handle(handle, size, str(path)) as readers:
                yield readers
        except OSError as error:
            raise AudioError(_unreadable(path, error)) from error


@contextmanager
def _open_handle(handle: BinaryIO, size: int, name: str) -> Iterator[list[SoundReader]]:
    """The sounds of an open file."""
    with ExitStack() as stack:
        readers: list[SoundReader] = []
        for part in find_parts(handle, size, name):
            readers.append(open_part(handle, part, name))
            stack.callback(readers[-1].close)
        if wrong := next((r.sample_rate for r in readers if not MIN_RATE <= r.sample_rate <= MAX_RATE), None):
            raise AudioError(f"{name}: states a sample rate of {wrong:,} Hz; correct its header, or record it again")
        if all(reader.samples is not None and reader.samples <= 0 for reader in readers):
            raise AudioError(f"{name}: {_NO_SAMPLES}")
        yield readers


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"


# Decoding -------------------------------------------------------------------------------------------------------------


def _decode_readers(readers: Sequence[SoundReader], clip: AudioClip, options: DecodeOptions, name: str) -> DecodedSound:
    """Decode the sounds of a file one after the other, as one."""
    _check_known_length(readers, clip, options, name)
    mixer = Mixer(0 if options.channel == "first" else "mean")
    sound = _decode_pass(readers, clip, options, mixer, name)
    if mixer.cancels:
        warn_of_cancelling(name)
        loudest = loudest_channel(block for reader in readers for block in reader.blocks(0))
        sound = _decode_pass(readers, clip, options, Mixer(loudest), name)
    return sound


def _check_known_length(readers: Sequence[SoundReader], clip: AudioClip, options: DecodeOptions, name: str) -> None:
    """Refuse a clip that is too long, or outside its file, before it is decoded, where its length is known or stated.

    A length that only the header states may be wrong by a little.
    """
    is_known = all(reader.samples is not None for reader in readers)
    lengths = [reader.samples if is_known else reader.stated_samples for reader in readers]
    total_s = 0.0
    for reader, length in zip(readers, lengths, strict=True):
        if length is None:
            return
        total_s += seconds(length, reader.sample_rate)
    if is_known:
        _check_segment(clip, total_s, name)
    if options.max_s is None or options.long_audio != "error":
        return
    rate = readers[0].sample_rate
    duration_s = (total_s if clip.end is None else min(total_s, clip.end)) - clip.start
    margin = 0 if is_known else num_samples(STATED_LENGTH_TOLERANCE_S, rate)
    if num_samples(duration_s, rate) > num_samples(options.max_s, rate) + margin:
        raise AudioError(too_long_message(duration_s, name, options))


def _check_segment(clip: AudioClip, duration_s: float, name: str) -> None:
    """Refuse a segment that does not lie in its file."""
    if clip.start >= duration_s or (clip.end is not None and clip.end > duration_s + SEGMENT_TOLERANCE_S):
        raise AudioError(f"{name}: the file lasts {duration_s:.2f} s; correct start and end of the segment")


def _decode_pass(
    readers: Sequence[SoundReader], clip: AudioClip, options: DecodeOptions, mixer: Mixer, name: str
) -> DecodedSound:
    """Read the range of a clip once."""
    waveforms: list[Waveform] = []
    done_s = offset_s = 0.0
    is_truncated = False
    for reader in readers:
        rate = reader.sample_rate
        first = max(0, num_samples(clip.start - offset_s, rate))
        end = None if clip.end is None else max(0, num_samples(clip.end - offset_s, rate))
        limit = None
        if options.max_s is not None and options.long_audio != "chunk":
            limit = first + num_samples(options.max_s - done_s, rate)
        is_limited = limit is not None and (end is None or limit < end)
        waveform, num_read, has_more = _read_part(reader, first, limit if is_limited else end, mixer, options, name)
        waveforms.append(waveform)
        done_s += seconds(num_read, rate)
        offset_s += seconds(reader.samples or first + num_read, rate)
        if is_limited and has_more:
            is_truncated = True
            break
    if is_truncated and options.long_audio == "error":
        raise AudioError(too_long_message(None, name, options))
    if not is_truncated:
        _check_segment(clip, max(offset_s, clip.start + done_s), name)
    waveform = waveforms[0] if len(waveforms) == 1 else np.concatenate(waveforms)
    return DecodedSound(_fit(waveform, max(1, len(waveform))), is_truncated)


def _read_part(
    reader: SoundReader, first: int, stop: int | None, mixer: Mixer, options: DecodeOptions, name: str
) -> tuple[Waveform, int, bool]:
    """Read the samples `[first, stop)` of a sound and resample them.

    Returns:
        The waveform, the number of samples read at the reader's rate, and whether the sound continues after `stop`.
    """
    rate, num_read, has_more = reader.sample_rate, 0, False
    wanted = None if stop is None else max(0, stop - first)
    needs_resampling = rate != options.sample_rate
    stream = soxr.ResampleStream(rate, options.sample_rate, 1, dtype="float32") if needs_resampling else None
    parts: list[Waveform] = []
    is_flushed = False
    for block in reader.blocks(first):
        if wanted is not None and num_read + len(block) > wanted:
            has_more, block = True, block[: wanted - num_read]
        if len(block):
            mono = mixer.mix(block)
            check_samples(mono, name, f" near {seconds(first + num_read, rate):.2f} s")
            num_read += len(mono)
            is_flushed = reader.samples is not None and first + num_read >= min(reader.samples, stop or reader.samples)
            parts.append(mono if stream is None else stream.resample_chunk(mono, last=is_flushed))
        if has_more:
            break
        if num_read == wanted and reader.samples is not None:
            has_more = reader.samples > first + num_read
            break
    if num_read and stream is not None and not is_flushed:
        parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    length = num_samples(seconds(num_read, rate), options.sample_rate)
    waveform = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.float32), *parts])
    return _fit(waveform, length), num_read, has_more


def _fit(waveform: Waveform, length: int) -> Waveform:
    """Cut or pad to a length: soxr drops the last fraction of a very short clip."""
    return np.pad(waveform, (0, length - len(waveform))) if len(waveform) < length else waveform[:length]
