"""Frames of MPEG audio (MP3, MP2, MP1): how many there really are, and where one file ends and the next begins.

An MP3 file is a sequence of frames without a count. A Xing, Info or VBRI frame may state one; where it is missing,
decoders estimate the length from the first frame's bit rate, and where files were joined, it counts the first alone.
This module walks over all frames instead, and reads no sound. Source: ISO/IEC 11172-3 section 2.4.1 and 13818-3 (frame
header), the LAME tag revision 1 specification (Xing, Info), Fraunhofer's VBRI header.
"""

from dataclasses import dataclass
from functools import lru_cache

from earwise.errors import AudioError

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Version code -> sample rates in Hz: MPEG-1, MPEG-2, MPEG-2.5."""
_KBPS = {
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""(is MPEG-1, layer) -> bit rates of the codes 1 to 14, in kbit/s."""
_SEARCHED_BYTES = 1 << 16
"""The first frame must begin in this many bytes."""
_CONSECUTIVE_FRAMES = 3
"""Frames that must follow each other before bytes count as MPEG audio: eleven set bits also occur by chance."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What a frame header says."""

    size: int
    """Bytes of the frame, with its header."""
    samples: int
    """Samples per channel."""
    kind: int
    """Version, layer, sample rate and mono or not, as bits of the header; equal for all frames of a stream."""
    sample_rate: int
    side_info: int
    """Bytes between the header and a Xing or Info tag."""


@dataclass(slots=True)
class MpegPart:
    """Frames that one encoder wrote as one file."""

    start: int
    """Position of the first frame in the file."""
    stop: int
    """Position after the last frame."""
    sample_rate: int
    frame_samples: int
    """Samples per channel and frame."""
    stated_frames: int | None
    """Number of frames that a Xing, Info or VBRI frame states; None without such a frame or number."""
    has_info_frame: bool
    """Whether the first frame is such a frame, which holds no sound."""
    padding: int = 0
    """Samples at both ends that the encoder added, as the LAME tag states them."""
    frames: int = 0
    """Number of frames with sound."""

    @property
    def samples(self) -> int:
        """Samples per channel without the encoder's padding."""
        return max(0, self.frames * self.frame_samples - self.padding)


def find_first_frame(data: bytes, start: int) -> int | None:
    """Position of the first frame at or after `start`; None if this is not MPEG audio."""
    for position in range(start, min(len(data) - 4, start + _SEARCHED_BYTES)):
        if data[position] == 0xFF and _begins_stream(data, position, is_certain=position == start):
            return position
    return None


def find_parts(data: bytes, first: int, name: str) -> list[MpegPart]:
    """Walk over the frames of a file.

    Args:
        data: The whole file.
        first: Position of the first frame, from `find_first_frame`.
        name: Name of the file in error messages.
    Returns:
        The files that were joined to this one, in order; a single one for most files.
    Raises:
        AudioError: if a frame is cut off, the sound is interrupted by bytes that are none, or frames that are stated
            are missing.
    """
    stop = _end_of_sound(data)
    parts: list[MpegPart] = []
    position, kind, seconds = first, -1, 0.0
    while position + 4 <= stop:
        header = _header(data, position)
        if header is None or (kind >= 0 and header.kind != kind and not _begins_stream(data, position)):
            position = _next_stream(data, position, stop, name, seconds)
            kind = -1  # tags separate files: what follows is decoded by itself
            continue
        if position + header.size > stop:
            raise AudioError(
                f"{name}: is truncated (its last frame, at {seconds:.2f} s, is cut off); fetch it again, or keep what "
                "is there: ffmpeg -i IN OUT.wav"
            )
        info = _info_part(data, position, header)
        if info is not None or header.kind != kind:
            parts.append(info or MpegPart(position, 0, header.sample_rate, header.samples, None, False))
            kind = header.kind
        part = parts[-1]
        if info is None:
            if part.stated_frames and part.frames == part.stated_frames + 1:
                # More than one frame beyond the stated number: another file without an info frame was joined.
                parts.append(MpegPart(position, 0, header.sample_rate, header.samples, None, False))
                part = parts[-1]
            part.frames += 1
            seconds += header.samples / header.sample_rate
        position += header.size
        part.stop = position
    parts = [part for part in parts if part.frames]
    for part in parts:
        if part.stated_frames is not None and part.frames < part.stated_frames - 1:
            raise AudioError(
                f"{name}: is truncated ({part.frames:,} of {part.stated_frames:,} frames are there); fetch it again"
            )
    return parts


def skip_id3v2(data: bytes, position: int = 0) -> int:
    """Position after an ID3v2 tag that begins at `position`; `position` if there is none.

    Source: ID3 tag version 2.4.0, section 3.1 (four bytes of seven bits; a footer of ten bytes by flag).
    """
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        b = data[position + 6 : position + 10]
        if max(b) > 127:
            return position
        size = b[0] << 21 | b[1] << 14 | b[2] << 7 | b[3]
        position += 10 + size + (10 if data[position + 5] & 0x10 else 0)
    return position


@lru_cache(maxsize=256)
def _parsed(word: int) -> _Header | None:
    """A frame header of 32 bits; None if it is none, or of free format."""
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)
    rate_code, kbps_code = word >> 10 & 3, word >> 12 & 15
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or rate_code == 3 or kbps_code in (0, 15):
        return None
    is_mpeg1, is_mono = version == 3, word >> 6 & 3 == 3
    rate, kbps = _RATES[version][rate_code], _KBPS[is_mpeg1, layer][kbps_code - 1]
    padding = word >> 9 & 1
    samples = 384 if layer == 1 else 1152 if layer == 2 or is_mpeg1 else 576
    size = (12000 * kbps // rate + padding) * 4 if layer == 1 else samples // 8 * 1000 * kbps // rate + padding
    side_info = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    return _Header(size, samples, word & 0xFFFE0C00 | is_mono, rate, side_info)


def _header(data: bytes, position: int) -> _Header | None:
    word = int.from_bytes(data[position : position + 4], "big")
    return _parsed(word & 0xFFFEFEC0) if word >= 0xFFE00000 else None  # without the bits that change no size


def _begins_stream(data: bytes, position: int, *, is_certain: bool = True) -> bool:
    """Whether several frames of one kind follow each other from here.

    Args:
        data: The whole file.
        position: Where the first of them would begin.
        is_certain: Whether frames are expected here, so that as many as the file still has are enough.
    """
    kind = None
    for _ in range(_CONSECUTIVE_FRAMES):
        header = _header(data, position)
        if header is None or (kind is not None and header.kind != kind):
            return False
        kind, position = header.kind, position + header.size
        if position + 4 > len(data) or data[position : position + 3] in (b"TAG", b"ID3", b"APE"):
            return is_certain
    return True


def _info_part(data: bytes, position: int, header: _Header) -> MpegPart | None:
    """The part that begins with a Xing, Info or VBRI frame at this position; None for a frame of sound."""
    tag = position + 4 + header.side_info
    if data[position + 36 : position + 40] == b"VBRI":
        stated = int.from_bytes(data[position + 50 : position + 54], "big")
        return MpegPart(position, 0, header.sample_rate, header.samples, stated or None, True)
    if data[tag : tag + 4] not in (b"Xing", b"Info"):
        return None
    flags = int.from_bytes(data[tag + 4 : tag + 8], "big")
    stated = int.from_bytes(data[tag + 8 : tag + 12], "big") if flags & 1 else 0
    fields = tag + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    delays = int.from_bytes(data[fields + 21 : fields + 24], "big") if fields + 24 <= position + header.size else 0
    padding = (delays >> 12) + (delays & 0xFFF) if data[fields : fields + 1].isalpha() else 0
    return MpegPart(position, 0, header.sample_rate, header.samples, stated or None, True, padding)


def _next_stream(data: bytes, position: int, stop: int, name: str, seconds: float) -> int:
    """Position of the frames after the tags that begin at `position`; `stop` if none follow.

    Raises:
        AudioError: if bytes that are no tags lie between frames.
    """
    after_tags = _skip_tags(data, position)
    if after_tags >= stop or (_header(data, after_tags) is not None and _begins_stream(data, after_tags)):
        return min(after_tags, stop)
    following = next(
        (
            place
            for place in range(after_tags, stop - 4)
            if data[place] == 0xFF and _begins_stream(data, place, is_certain=False)
        ),
        None,
    )
    if following is None:
        return stop
    raise AudioError(
        f"{name}: is damaged after {seconds:.2f} s ({following - after_tags:,} bytes are no sound); fetch it again"
    )


def _skip_tags(data: bytes, position: int) -> int:
    """Position after all tags (ID3, APE, Lyrics3) that begin at `position`."""
    while True:
        before = position
        position = skip_id3v2(data, position)
        if data[position : position + 3] == b"TAG":
            position += 227 if data[position : position + 4] == b"TAG+" else 128
        if data[position : position + 8] == b"APETAGEX":
            position += 32 + int.from_bytes(data[position + 12 : position + 16], "little")
        if data[position : position + 11] == b"LYRICSBEGIN":
            ends = [data.find(end, position) for end in (b"LYRICS200", b"LYRICSEND")]
            position = min((end + 9 for end in ends if end >= 0), default=len(data))
        if position == before:
            return position


def _end_of_sound(data: bytes) -> int:
    """Position of the tags at the end of the file (ID3v1, then APE before it)."""
    stop = len(data)
    if data[stop - 128 : stop - 125] == b"TAG":
        stop -= 128
    if data[stop - 32 : stop - 24] == b"APETAGEX":
        size = int.from_bytes(data[stop - 20 : stop - 16], "little")
        has_header = int.from_bytes(data[stop - 12 : stop - 8], "little") >> 31
        stop -= min(stop, size + 32 * has_header)
    return stop
