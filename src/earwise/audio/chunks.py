"""Sizes that WAV, RF64, W64, AIFF, CAF and AU files state, compared with what is there.

These files hold samples in a chunk whose size stands before it. Where a program was killed or wrote into a pipe, that
size is 0, the largest number, or that of the whole file; where a download was, the samples end before it. libsndfile
believes small sizes and shortens the clip to what is there for large ones. Here a size that is none is replaced, and a
file whose samples are missing is refused.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from earwise.errors import AudioError

UNSTATED_SIZE = 0x7FFF_F000
"""Programs that write into a pipe state this size or a larger one."""
IGNORED_BYTES = 4096
"""Fewer bytes after the samples that are no chunks hold no sound worth mentioning (less than 0.05 s of CD audio)."""
PCM_CODEC = 1
"""Code of uncompressed samples in the format chunk of a WAV file."""
MPEG_CODECS = (0x50, 0x55)
"""Codes of MPEG audio in the format chunk of a WAV file."""


@dataclass(frozen=True, slots=True)
class SampleChunk:
    """Where the samples of a file are."""

    start: int
    """Position of the first byte of the samples."""
    stop: int
    """Position after the last one."""
    codec: int | None = None
    """Format code of a WAV file."""
    patches: dict[int, bytes] = field(default_factory=dict)
    """Position -> bytes of sizes that have to be replaced before the file is decoded."""
    file_stop: int | None = None
    """Position at which another WAV file begins, if one was joined to this one."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk header."""

    name: bytes
    size: int
    """Stated size of the content."""
    size_position: int
    start: int
    """Position of the content."""


def find_samples(handle: BinaryIO, start: int, size: int, name: str) -> SampleChunk | None:
    """Find the samples of a file that consists of chunks.

    Args:
        handle: The file.
        start: Where the file begins (0, or the end of a tag).
        size: Size of the file in bytes.
        name: Name of the file in error messages.
    Returns:
        Where the samples are; None for a file of another kind, or without samples.
    Raises:
        AudioError: if samples are missing, or follow where the file says that there are none.
    """
    handle.seek(start)
    head = handle.read(12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return _wav_samples(handle, start, size, name)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _checked(_find(handle, start + 12, size, b"SSND", byteorder="big"), size, name)
    if head[:4] == b"caff":
        chunk = _find(handle, start + 8, size, b"data", size_bytes=8, byteorder="big", align=1)
        if chunk is not None and chunk.size in (0xFFFF_FFFF_FFFF_FFFF, 0):
            return None  # to the end of the file
        return _checked(chunk, size, name)
    if head[:4] == b"riff" and size > start + 40:
        return _checked(_find_w64(handle, start + 40, size), size, name)
    if head[:4] == b".snd":
        first, stated = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
        return None if stated == 0xFFFF_FFFF else _checked(_Chunk(b"", stated, 8, start + first), size, name)
    return None


def _wav_samples(handle: BinaryIO, start: int, size: int, name: str) -> SampleChunk | None:
    """The data chunk of a WAV or RF64 file."""
    chunks: dict[bytes, _Chunk] = {}
    for chunk in _iterate(handle, start + 12, size):
        chunks.setdefault(chunk.name, chunk)
        if chunk.name == b"data":
            break
    data = chunks.get(b"data")
    if data is None:
        handle.seek(start + 4)
        stated = int.from_bytes(handle.read(4), "little") + 8
        if 8 < stated < UNSTATED_SIZE and start + stated > size + 1:
            raise AudioError(f"{name}: is truncated ({size:,} of {stated:,} bytes); fetch it again")
        return None
    codec = _codec(handle, chunks.get(b"fmt "), name)
    stated, there = data.size, size - data.start
    position, width = data.size_position, 4
    if b"ds64" in chunks and stated == 0xFFFF_FFFF:
        position, width = chunks[b"ds64"].start + 8, 8
        handle.seek(position)
        stated = int.from_bytes(handle.read(8), "little")
    is_unstated = (
        (stated == 0 and not _holds_chunks(handle, data.start, size))
        or (width == 4 and stated >= UNSTATED_SIZE and stated > there)
        or stated == 0xFFFF_FFFF_FFFF_FFFF
    )
    file_size = size - start
    if is_unstated or stated in (file_size, file_size - 8):  # a common error: the size of the file, not of the samples
        if width == 4 and there >= 0xFFFF_FFFF:
            raise AudioError(f"{name}: states no size and is larger than 4 GB; write it as RF64 or FLAC")
        patches = {position: there.to_bytes(width, "little")}
        if width == 4:
            patches[start + 4] = min(size - start - 8, 0xFFFF_FFFF).to_bytes(4, "little")
        return SampleChunk(data.start, size, codec, patches)
    checked = _checked(_Chunk(data.name, stated, position, data.start), size, name)
    rest = checked.stop + (stated & 1)
    joined = _joined_wav(handle, rest, size)
    if joined is None and size - rest > IGNORED_BYTES and not _holds_chunks(handle, rest, size):
        raise AudioError(
            f"{name}: states {stated:,} bytes of samples, but {size - rest:,} bytes follow that are none of its "
            "chunks; the size in its header is wrong: write it again (ffmpeg -ignore_length 1 -i IN OUT.wav)"
        )
    return SampleChunk(checked.start, checked.stop, codec, {}, joined)


def _codec(handle: BinaryIO, chunk: _Chunk | None, name: str) -> int | None:
    """Format code of a WAV file.

    The oldest form of the format chunk (14 bytes) has no number of bits; decoders take eight, so samples of another
    width would be noise of another length.
    """
    if chunk is None:
        return None
    handle.seek(chunk.start)
    layout = handle.read(14)
    codec = int.from_bytes(layout[:2], "little")
    channels, frame_bytes = int.from_bytes(layout[2:4], "little"), int.from_bytes(layout[12:14], "little")
    if codec == PCM_CODEC and chunk.size < 16 and frame_bytes != channels:
        raise AudioError(
            f"{name}: its header has {chunk.size} bytes and does not say how many bits a sample has; write it anew as "
            "wav or flac"
        )
    return codec


def _checked(chunk: _Chunk | None, size: int, name: str) -> SampleChunk:
    """The samples of a chunk that must be there as a whole."""
    if chunk is None:
        return SampleChunk(size, size)
    stop = chunk.start + chunk.size
    if stop > size:
        raise AudioError(
            f"{name}: is truncated ({max(0, size - chunk.start):,} of {chunk.size:,} bytes of samples); fetch it again"
        )
    return SampleChunk(chunk.start, stop)


def _iterate(
    handle: BinaryIO,
    position: int,
    size: int,
    *,
    size_bytes: int = 4,
    byteorder: Literal["little", "big"] = "little",
    align: int = 2,
) -> Iterator[_Chunk]:
    """The chunk headers of a file from a position on."""
    while position + 4 + size_bytes <= size:
        handle.seek(position)
        header = handle.read(4 + size_bytes)
        content = int.from_bytes(header[4:], byteorder)
        yield _Chunk(header[:4], content, position + 4, position + 4 + size_bytes)
        position += 4 + size_bytes + -(-content // align) * align


def _find(
    handle: BinaryIO,
    position: int,
    size: int,
    wanted: bytes,
    *,
    size_bytes: int = 4,
    byteorder: Literal["little", "big"] = "little",
    align: int = 2,
) -> _Chunk | None:
    chunks = _iterate(handle, position, size, size_bytes=size_bytes, byteorder=byteorder, align=align)
    return next((chunk for chunk in chunks if chunk.name == wanted), None)


def _find_w64(handle: BinaryIO, position: int, size: int) -> _Chunk | None:
    """The data chunk of a W64 file: names of 16 bytes, sizes of 8 that count the header, content aligned to 8."""
    while position + 24 <= size:
        handle.seek(position)
        header = handle.read(24)
        total = int.from_bytes(header[16:], "little")
        if header[:4] == b"data":
            return _Chunk(header[:4], max(0, total - 24), position + 16, position + 24)
        position += max(24, -(-total // 8) * 8)
    return None


def _holds_chunks(handle: BinaryIO, position: int, size: int) -> bool:
    """Whether only whole chunks, tags and up to `IGNORED_BYTES` others lie between a position and the end."""
    while position + 8 <= size:
        handle.seek(position)
        header = handle.read(8)
        if header[:3] in (b"ID3", b"TAG") or header == b"APETAGEX":
            return True
        stop = position + 8 + int.from_bytes(header[4:], "little")
        if not (header[:4].isascii() and header[:4].decode("ascii").isprintable()) or stop > size + 1:
            return False
        position = stop + (stop - position & 1)
    return True


def _joined_wav(handle: BinaryIO, position: int, size: int) -> int | None:
    """Position of another WAV file after the samples."""
    handle.seek(position)
    window, offset = b"", position
    while block := handle.read(io.DEFAULT_BUFFER_SIZE * 128):
        window += block
        place = window.find(b"RIFF")
        while place >= 0:
            if window[place + 8 : place + 12] == b"WAVE":
                return offset + place
            place = window.find(b"RIFF", place + 1)
        offset += max(0, len(window) - 11)
        window = window[-11:]
    return None
