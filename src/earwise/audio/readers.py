"""The two decoders behind one interface: libsndfile where it is exact, PyAV (FFmpeg) for everything else.

libsndfile reads files of samples, FLAC, Ogg and MP3 whose number of samples it states as it was counted in
`audio/parts.py`. PyAV reads m4a, mp4, webm, aac, wma, amr and whatever else libsndfile refuses or only estimates. Both
yield blocks of float32 samples until the sound ends; a decoder that fails before that raises an error.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import av
import numpy as np
import soundfile

from earwise.audio.file_slice import FileSlice, slice_of
from earwise.audio.mixing import Block
from earwise.audio.parts import SoundPart
from earwise.errors import AudioError

BLOCK_SAMPLES = 1 << 18
"""Values read at a time, all channels together (1 MiB)."""
FFMPEG_FORMATS = (
    "aac,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,ac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,rm,shn,tak,tta,voc,w64,wav,wv,xwma,loas,latm"
)
"""FFmpeg's demuxers that are used. Playlists and others that open further files or addresses are not among them."""
STATED_LENGTH_FORMATS = ("mov", "matroska", "asf")
"""Containers whose header states the length of the sound; in others FFmpeg estimates it."""
EXACT_SEEK_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
"""libsndfile finds any sample in these at once; lossy formats are read from the beginning."""
STATED_LENGTH_TOLERANCE_S = 0.25
"""A file whose sound ends earlier than its header states by more than this is truncated."""
PADDING_PACKETS = 2
"""An m4a file decodes to up to so many packets more than its sound."""
_NO_AUDIO = {
    b"version https://git-lfs": "is a pointer of Git LFS and not the file; fetch it with `git lfs pull`",
    b"<!doctype": "is a web page and not audio; fetch it again (a log-in page?)",
    b"<html": "is a web page and not audio; fetch it again (a log-in page?)",
}
"""First bytes of files that stand where audio should be -> what to do."""
_FULL_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0}


class SoundReader(Protocol):
    """One open sound."""

    sample_rate: int
    """Hz."""
    channels: int
    samples: int | None
    """Samples per channel; None where that is not known before the end."""
    stated_samples: int | None
    """Samples per channel as the header states them; None where it states nothing."""

    def blocks(self, first: int) -> Iterator[Block]:
        """Yield all samples from number `first` on.

        Raises:
            AudioError: if the file is damaged or ends too early.
        """
        ...

    def count(self) -> int:
        """Number of samples per channel, counted if it is not known.

        Raises:
            AudioError: if the file is damaged.
        """
        ...

    def close(self) -> None:
        """Close the decoder; the file stays open."""
        ...


def open_part(handle: BinaryIO, part: SoundPart, name: str) -> SoundReader:
    """Open a part of a file with the decoder that reads it to its end.

    Raises:
        AudioError: if no decoder can read it.
    """
    if not part.needs_ffmpeg:
        try:
            sound = soundfile.SoundFile(slice_of(handle, part.start, part.stop, part.patches))
        except (soundfile.LibsndfileError, RuntimeError, TypeError):
            return FfmpegReader(handle, part, name)
        if part.samples is None or sound.frames in part.samples:
            return SoundfileReader(sound, name)
        sound.close()
    return FfmpegReader(handle, part, name)


class SoundfileReader:
    """A sound that libsndfile decodes.

    Args:
        sound: The open file.
        name: Name of the file in error messages.
    """

    def __init__(self, sound: Any, name: str) -> None:
        self._sound, self._name = sound, name
        self._position = 0
        self.sample_rate: int = sound.samplerate
        self.channels: int = sound.channels
        self.samples: int | None = sound.frames
        self.stated_samples: int | None = sound.frames

    def close(self) -> None:
        """Close the decoder; the file stays open."""
        self._sound.close()

    def blocks(self, first: int) -> Iterator[Block]:
        """Yield all samples from number `first` on; see `SoundReader`."""
        total = self._sound.frames
        step = max(1, BLOCK_SAMPLES // self.channels)
        position = min(first, total) if first and self._sound.format in EXACT_SEEK_FORMATS else 0
        if self._position != position:
            self._seek(position)
        while position < total:
            try:
                block = self._sound.read(min(step, total - position), dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise AudioError(f"{self._name}: {self._damaged(position)} ({error})") from error
            if not len(block):
                raise AudioError(f"{self._name}: {self._damaged(position)}")
            position += len(block)
            self._position = position
            if position > first:
                yield block[max(0, len(block) - (position - first)) :]

    def count(self) -> int:
        """Number of samples per channel."""
        return int(self._sound.frames)

    def _seek(self, position: int) -> None:
        try:
            self._sound.seek(position)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(
                f"{self._name}: cannot be read from {position / self.sample_rate:.2f} s on; convert it to wav or flac"
            ) from error
        self._position = position

    def _damaged(self, position: int) -> str:
        place = f"{position / self.sample_rate:.2f} of {self._sound.frames / self.sample_rate:.2f} s"
        return f"is truncated or damaged after {place}; fetch it again"


class FfmpegReader:
    """A sound that FFmpeg decodes.

    Args:
        handle: The file.
        part: The part of it to decode.
        name: Name of the file in error messages.
    Raises:
        AudioError: if FFmpeg does not know the format, or finds no sound.
    """

    def __init__(self, handle: BinaryIO, part: SoundPart, name: str) -> None:
        self._handle, self._part, self._name = handle, part, name
        self._container, stream = self._open()
        self._was_read = False
        codec = None if stream is None else stream.codec_context  # None for a codec that is not known
        if codec is None or not codec.channels or not codec.sample_rate:
            self._container.close()
            raise AudioError(f"{name}: holds no sound that can be read; export it with its sound, as wav or flac")
        self.sample_rate: int = codec.sample_rate
        self.channels: int = codec.channels
        self.samples: int | None = None
        self.stated_samples: int | None = max(part.samples) if part.samples else self._stated(stream)

    def close(self) -> None:
        """Close the decoder; the file stays open."""
        self._container.close()

    def blocks(self, first: int) -> Iterator[Block]:
        """Yield all samples from number `first` on; see `SoundReader`.

        The last packet of an m4a file is longer than its sound; what the header does not count is dropped.
        """
        if self._was_read:
            self._container.close()
            self._container, _ = self._open()
        self._was_read = True
        num_done, tail = 0, list[Block]()
        limit = self.stated_samples if self._container.format.name.startswith("mov") else None
        for block in self._decoded():
            if limit is not None and num_done + len(block) > limit:
                tail.append(block[limit - num_done :])
                block = block[: limit - num_done]
            if max(0, first - num_done) < len(block):
                yield block[max(0, first - num_done) :]
            num_done += len(block)
        if tail and sum(map(len, tail)) > PADDING_PACKETS * max(map(len, tail)):  # the header was wrong
            for block in tail:
                if max(0, first - num_done) < len(block):
                    yield block[max(0, first - num_done) :]
                num_done += len(block)
        self._check_length(num_done)
        self.samples = num_done

    def count(self) -> int:
        """Number of samples per channel, by decoding all of them."""
        return sum(map(len, self.blocks(0))) if self.samples is None else self.samples

    def _open(self) -> tuple[Any, Any]:
        """The container, and its audio stream if it has one."""
        file = FileSlice(self._handle, self._part.start, self._part.stop, self._part.patches)
        options = {"format_whitelist": FFMPEG_FORMATS, "protocol_whitelist": ""}
        try:
            container = av.open(file, options=options, metadata_errors="replace")
            return container, container.streams.best("audio")
        except (av.error.FFmpegError, ValueError, UnicodeError) as error:
            self._handle.seek(0)
            head = self._handle.read(256)
            reason = next(
                (reason for start, reason in _NO_AUDIO.items() if head.lower().lstrip().startswith(start)), ""
            )
            raise AudioError(
                f"{self._name}: "
                + (reason or "is no audio that can be read; convert it to wav, flac, ogg or mp3 (ffmpeg -i IN OUT.wav)")
            ) from error

    def _decoded(self) -> Iterator[Block]:
        """The samples of all frames, as float32."""
        num_done = 0
        stream = self._container.streams.best("audio")
        try:
            for packet in self._container.demux(stream):
                if packet.is_corrupt:
                    raise AudioError(f"{self._name}: {self._damaged(num_done)}")
                for frame in packet.decode():
                    if frame.sample_rate != self.sample_rate or frame.layout.nb_channels != self.channels:
                        raise AudioError(
                            f"{self._name}: changes its sample rate or channels after "
                            f"{num_done / self.sample_rate:.2f} s; convert it (ffmpeg -i IN OUT.wav)"
                        )
                    block = _to_float(frame)
                    num_done += len(block)
                    yield block
        except (av.error.FFmpegError, ValueError) as error:
            raise AudioError(f"{self._name}: {self._damaged(num_done)} ({error})") from error

    def _stated(self, stream: Any) -> int | None:
        """Samples per channel that the container's header states."""
        if not self._container.format.name.startswith(STATED_LENGTH_FORMATS):
            return None
        if stream.duration is not None:
            return round(float(stream.duration * stream.time_base) * self.sample_rate)
        if self._container.duration is not None and len(self._container.streams) == 1:
            return round(self._container.duration / 1e6 * self.sample_rate)
        return None

    def _check_length(self, num_done: int) -> None:
        """Refuse a sound that ends before its stated end."""
        missing = (self.stated_samples or 0) - num_done
        if missing > STATED_LENGTH_TOLERANCE_S * self.sample_rate:
            raise AudioError(f"{self._name}: {self._damaged(num_done)}")
        if num_done == 0:
            raise AudioError(f"{self._name}: holds no samples (0 s of sound); record or export it again")

    def _damaged(self, num_done: int) -> str:
        total = f" of {self.stated_samples / self.sample_rate:.2f}" if self.stated_samples else ""
        return f"is truncated or damaged after {num_done / self.sample_rate:.2f}{total} s; fetch it again"


def _to_float(frame: Any) -> Block:
    """The samples of a frame in [-1, 1], `(samples, channels)`."""
    kind = frame.format.name.removesuffix("p")
    samples = frame.to_ndarray()
    by_sample = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if kind in ("flt", "dbl"):
        return np.ascontiguousarray(by_sample, dtype=np.float32)
    if kind not in _FULL_SCALE:
        raise ValueError(f"samples of type {kind} are not known")
    shifted = by_sample.astype(np.float32 if kind != "s32" else np.float64) - (128.0 if kind == "u8" else 0.0)
    return np.ascontiguousarray(shifted / _FULL_SCALE[kind], dtype=np.float32)
