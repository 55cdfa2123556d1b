"""What a file really holds: one sound, or several that were joined, and which decoder reads each to its end.

The first step of decoding. Files of samples (WAV and its kin), Ogg, FLAC and MPEG audio are examined here, because
libsndfile believes their headers; everything else is PyAV's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from earwise.audio import chunks, containers, mpeg, ogg
from earwise.errors import AudioError

_FLAC_MAGIC = b"fLaC"
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide")
_MATROSKA_MAGIC = b"\x1aE\xdf\xa3"
_ASF_MAGIC = b"0&\xb2u"
_FFMPEG_MAGIC = (_MATROSKA_MAGIC, _ASF_MAGIC, b"#!AM")
"""First bytes of Matroska and WebM, of ASF (wma), and of AMR."""
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class SoundPart:
    """A range of bytes of a file that is decoded by itself."""

    start: int
    stop: int
    patches: dict[int, bytes] = field(default_factory=dict)
    """Position -> bytes that stand there instead."""
    samples: frozenset[int] | None = None
    """Numbers of samples per channel that are right, where they were counted; a decoder that states another number is
    not used. None: not counted."""
    needs_ffmpeg: bool = False
    """Whether libsndfile would not decode the part to its end."""


def find_parts(handle: BinaryIO, size: int, name: str) -> list[SoundPart]:
    """Examine a file.

    Args:
        handle: The file.
        size: Its size in bytes.
        name: Its name in error messages.
    Returns:
        Its parts, in order.
    Raises:
        AudioError: if a part of the sound is missing, or something lies between the parts.
    """
    start = _after_tag(handle)
    handle.seek(start)
    head = handle.read(12)
    if head[:4] == b"OggS":
        handle.seek(start)
        return [SoundPart(start + first, start + last) for first, last in ogg.find_links(handle.read(), name)]
    if head[:4] == _FLAC_MAGIC:
        return list(_flac_parts(handle, start, size))
    if head[:4] in (b"RIFF", b"RF64", b"FORM", b"caff", b"riff", b".snd"):
        return list(_chunked_parts(handle, start, size, name))
    if head[:4] == _MATROSKA_MAGIC:
        containers.check_matroska(handle, size, name)
    if head[4:8] in _MP4_BOXES and start == 0:
        containers.check_mp4(handle, size, name)
    if head[:4] == _ASF_MAGIC and start == 0:
        containers.check_asf(handle, size, name)
    if head[4:8] in _MP4_BOXES or head[:4] in _FFMPEG_MAGIC:
        return [SoundPart(start, size, needs_ffmpeg=True)]
    return _mpeg_parts(handle, start, size, name) or [SoundPart(start, size)]


def _after_tag(handle: BinaryIO) -> int:
    """Position after the ID3v2 tags at the beginning, which players put before files of any format."""
    position = 0
    while True:
        handle.seek(position)
        head = handle.read(10)
        after = mpeg.skip_id3v2(head)
        if after == 0:
            return position
        position += after


def _chunked_parts(handle: BinaryIO, start: int, size: int, name: str) -> Iterator[SoundPart]:
    """WAV and its kin; WAV files that were joined are found one after the other."""
    while True:
        samples = chunks.find_samples(handle, start, size, name)
        if samples is not None and samples.codec in chunks.MPEG_CODECS:
            handle.seek(0)
            data = handle.read(samples.stop)
            first = mpeg.find_first_frame(data, samples.start)
            if first is None:
                raise AudioError(f"{name}: is no audio that can be read (a WAV file of MP3 without a frame of it)")
            yield from map(_mpeg_part, mpeg.find_parts(data, first, name))
        else:
            next_file = samples.file_stop if samples is not None else None
            yield SoundPart(start, next_file or size, samples.patches if samples is not None else {})
        if samples is None or samples.file_stop is None:
            return
        start = samples.file_stop


def _flac_parts(handle: BinaryIO, start: int, size: int) -> Iterator[SoundPart]:
    """A FLAC file; files that were joined begin with the marker and a block of 34 bytes (RFC 9639, section 8.2)."""
    starts = [start, *(place for place in _find_all(handle, _FLAC_MAGIC, start + 4) if _is_stream_info(handle, place))]
    for first, last in zip(starts, [*starts[1:], size], strict=True):
        handle.seek(first + 8 + 13)
        stated = int.from_bytes(handle.read(5), "big") & 0xF_FFFF_FFFF  # 36 bits; 0 where the writer did not know
        yield SoundPart(first, last, samples=frozenset([stated]) if stated else None, needs_ffmpeg=not stated)


def _is_stream_info(handle: BinaryIO, position: int) -> bool:
    handle.seek(position + 4)
    block = handle.read(4)
    return len(block) == 4 and block[0] & 0x7F == 0 and block[1:] == b"\x00\x00\x22"


def _find_all(handle: BinaryIO, marker: bytes, position: int) -> list[int]:
    """Positions of a marker from `position` on."""
    places, window, offset = [], b"", position
    handle.seek(position)
    while block := handle.read(_BLOCK):
        window += block
        place = window.find(marker)
        while place >= 0:
            places.append(offset + place)
            place = window.find(marker, place + 1)
        keep = len(marker) - 1
        offset += max(0, len(window) - keep)
        window = window[-keep:]
    return places


def _mpeg_parts(handle: BinaryIO, start: int, size: int, name: str) -> list[SoundPart]:
    """The parts of an MP3, MP2 or MP1 file; none for another file."""
    handle.seek(start)
    head = handle.read(1 << 17)
    first = mpeg.find_first_frame(head, 0)
    if first is None:
        return []
    data = head + handle.read() if size - start > len(head) else head
    parts = [_mpeg_part(part) for part in mpeg.find_parts(data, first, name)]
    if len(parts) == 1 and first == 0:
        return [SoundPart(0, size, samples=parts[0].samples)]  # decoders skip tags themselves
    return [SoundPart(start + part.start, start + part.stop, samples=part.samples) for part in parts]


def _mpeg_part(part: mpeg.MpegPart) -> SoundPart:
    """libsndfile reads what its decoder counts as this module does; it takes away the encoder's padding or not."""
    whole = part.frames * part.frame_samples
    return SoundPart(part.start, part.stop, samples=frozenset([part.samples, whole]))
