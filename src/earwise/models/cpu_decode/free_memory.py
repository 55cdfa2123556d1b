"""Gives memory that was freed back to the operating system.

The allocator of glibc keeps freed blocks below 32 MB for later, and blocks of other sizes do not fit into them: packing
a decoder for another number of rows, after the old packing was freed, took 380 MB more each time.
"""

import ctypes
from functools import lru_cache
from typing import Any


def release_freed_memory() -> None:
    """Return all freed blocks to the operating system; nothing happens with another allocator than glibc's."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> Any:
    """The C library of this process, if it has `malloc_trim`; otherwise None."""
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError, TypeError):
        return None
    return library
