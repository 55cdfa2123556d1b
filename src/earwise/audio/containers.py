"""Whether the files that FFmpeg reads are whole: Matroska and WebM, MP4 (m4a), ASF (wma).

FFmpeg ends quietly where such a file is cut off, and the length that a header states may differ from that of the sound
by as much as a last packet. The sizes in bytes are exact: every block of Matroska states its own, MP4 the size of the
box that holds the sound, ASF that of the whole file. A live recording (as browsers make) states no length at all.

Sources: RFC 8794 (EBML), sections 4 to 6; ISO/IEC 14496-12, section 4.2 (boxes); Microsoft's ASF specification,
sections 3.1 and 3.2 (header and file properties).
"""

from typing import BinaryIO

from earwise.errors import AudioError

_MASTERS = (0x18538067, 0x1F43B675)
"""Segment and Cluster: their content is walked over, since their own size may be unknown."""


_MEDIA_BOXES = (b"mdat", b"moof", b"moov")
"""Boxes of MP4 that hold sound, or say where it is."""
_ASF_HEADER_BYTES = 30
_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Object of an ASF header with the size of the file."""


def check_matroska(handle: BinaryIO, size: int, name: str) -> None:
    """Refuse a file whose last element is cut off.

    Args:
        handle: The file.
        size: Its size in bytes.
        name: Its name in error messages.
    Raises:
        AudioError: if the file ends within an element.
    """
    position = 0
    while position < size:
        handle.seek(position)
        header = handle.read(12)
        id_length = _vint_length(header[:1])
        size_length = _vint_length(header[id_length : id_length + 1])
        if not id_length or not size_length:
            if position + 12 < size:  # other bytes after the last element
                return
            break
        if len(header) < id_length + size_length:
            break
        element = int.from_bytes(header[:id_length], "big")
        content = int.from_bytes(header[id_length : id_length + size_length], "big") & ((1 << 7 * size_length) - 1)
        is_unknown = content == (1 << 7 * size_length) - 1
        position += id_length + size_length
        if element in _MASTERS and (is_unknown or position + content <= size):
            continue
        if is_unknown:
            return
        position += content
    if position != size:
        raise AudioError(f"{name}: is truncated (its last block is cut off); fetch it again")


def check_mp4(handle: BinaryIO, size: int, name: str) -> None:
    """Refuse an MP4 file whose sound is cut off; the arguments are those of `check_matroska`.

    Raises:
        AudioError: if a box that holds sound ends after the file.
    """
    position = 0
    while position + 8 <= size:
        handle.seek(position)
        header = handle.read(16)
        box_bytes, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if box_bytes == 1:
            box_bytes = int.from_bytes(header[8:16], "big")
        if box_bytes == 0:  # to the end of the file
            return
        if position + box_bytes > size and kind in _MEDIA_BOXES:
            raise AudioError(
                f"{name}: is truncated ({size - position:,} of {box_bytes:,} bytes of its sound); fetch it again"
            )
        if box_bytes < 8:
            return
        position += box_bytes


def check_asf(handle: BinaryIO, size: int, name: str) -> None:
    """Refuse a wma file that is smaller than it states; the arguments are those of `check_matroska`.

    Raises:
        AudioError: if bytes are missing.
    """
    handle.seek(0)
    header_bytes = int.from_bytes(handle.read(24)[16:24], "little")
    position = _ASF_HEADER_BYTES
    while position + 24 <= min(header_bytes, size):
        handle.seek(position)
        item = handle.read(92)
        if item[:16] == _FILE_PROPERTIES and len(item) == 92:
            stated, is_live = int.from_bytes(item[40:48], "little"), item[88] & 1
            if stated > size and not is_live:
                raise AudioError(f"{name}: is truncated ({size:,} of {stated:,} bytes); fetch it again")
            return
        item_bytes = int.from_bytes(item[16:24], "little")
        if item_bytes < 24:
            return
        position += item_bytes


def _vint_length(first_byte: bytes) -> int:
    """Length in bytes of a number of variable size, from its first byte; 0 for none."""
    return 9 - first_byte[0].bit_length() if first_byte and first_byte[0] else 0
