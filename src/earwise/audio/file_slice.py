"""A range of bytes of a file as a file of its own, so that each of several joined files is decoded by itself.

Some bytes can be replaced on the way, where a header states a size that is not so. Decoders see a seekable file without
a name; a name would let them guess a format from its ending.
"""

import io
import os
from collections.abc import Mapping
from typing import BinaryIO


class FileSlice:
    """Seekable, read-only view of the bytes `[start, stop)` of an open file.

    Args:
        handle: The open file. Its position is set before every read, so that several slices may share it.
        start: First byte of the slice.
        stop: First byte after the slice.
        patches: Position in the file -> bytes that stand there instead.
    """

    def __init__(self, handle: BinaryIO, start: int, stop: int, patches: Mapping[int, bytes] | None = None) -> None:
        self._handle, self._start, self._size = handle, start, stop - start
        self._patches = {position - start: data for position, data in (patches or {}).items()}
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; all that are left for a negative size."""
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        self._handle.seek(self._start + self._position)
        data = self._handle.read(wanted)
        if self._patches:
            data = self._patched(data)
        self._position += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read into a buffer; returns the number of bytes."""
        data = self.read(len(buffer))
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, as files do; returns the new position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def _patched(self, data: bytes) -> bytes:
        """`data`, which begins at the position, with the patches that lie in it."""
        out = io.BytesIO(data)
        for position, patch in self._patches.items():
            begin = max(position, self._position)
            end = min(position + len(patch), self._position + len(data))
            if begin < end:
                out.seek(begin - self._position)
                out.write(patch[begin - position : end - position])
        return out.getvalue()


def slice_of(handle: BinaryIO, start: int, stop: int, patches: Mapping[int, bytes]) -> "BinaryIO | FileSlice":
    """A range of a file as a file of its own: the handle itself, rewound, where the range is the whole file.

    Never bytes in memory themselves: a damaged file makes libsndfile seek to before its beginning, which these answer
    with an exception that is printed and cannot be caught.
    """
    if start == 0 and not patches and not isinstance(handle, io.BytesIO) and handle.seek(0, os.SEEK_END) == stop:
        handle.seek(0)
        return handle
    return FileSlice(handle, start, stop, patches)
