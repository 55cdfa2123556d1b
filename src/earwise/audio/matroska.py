"""Elements of a Matroska or WebM file: whether the last one is whole.

FFmpeg ends quietly where such a file is cut off. A live recording (as browsers make) states no length at all, but every
block of sound in it states its own size. Source: RFC 8794 (EBML), sections 4 to 6.
"""

from typing import BinaryIO

from earwise.errors import AudioError

_MASTERS = (0x18538067, 0x1F43B675)
"""Segment and Cluster: their content is walked over, since their own size may be unknown."""


def check_end(handle: BinaryIO, size: int, name: str) -> None:
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


def _vint_length(first_byte: bytes) -> int:
    """Length in bytes of a number of variable size, from its first byte; 0 for none."""
    return 9 - first_byte[0].bit_length() if first_byte and first_byte[0] else 0
