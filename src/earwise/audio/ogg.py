"""Pages of an Ogg file: whether all are whole and there, and where one chained stream ends and the next begins.

libsndfile decodes the first stream of a chained file alone, and skips what is missing. This module walks over the
headers of all pages, and reads no sound. Source: RFC 3533, section 6.
"""

from earwise.errors import AudioError

_HEADER_BYTES = 27
_FIRST_PAGE = 0x02
"""Flag of the first page of a logical stream."""


def find_links(data: bytes, name: str) -> list[tuple[int, int]]:
    """The chained streams of an Ogg file.

    Args:
        data: The whole file, which begins with a page.
        name: Name of the file in error messages.
    Returns:
        `(start, stop)` of each stream in bytes, each a file of its own; a single one for most files.
    Raises:
        AudioError: if a page is cut off or missing.
    """
    starts: list[int] = []
    sequence: dict[bytes, int] = {}
    position, in_header = 0, False
    while data[position : position + 4] == b"OggS":
        table = position + _HEADER_BYTES
        num_segments = data[table - 1] if table <= len(data) else 0
        end = table + num_segments + sum(data[table : table + num_segments])
        if table + num_segments > len(data) or end > len(data):
            raise AudioError(f"{name}: is truncated (its last page is cut off); fetch it again")
        is_first = bool(data[position + 5] & _FIRST_PAGE)
        if is_first and not in_header:  # several first pages in a row belong to streams that run side by side
            starts.append(position)
            sequence = {}
        in_header = is_first
        serial = data[position + 14 : position + 18]
        number = int.from_bytes(data[position + 18 : position + 22], "little")
        if serial in sequence and number != sequence[serial] + 1:
            raise AudioError(
                f"{name}: is damaged (page {number} follows page {sequence[serial]} at byte {position:,}); fetch it "
                "again"
            )
        sequence[serial] = number
        position = end
    rest = data[position : position + _HEADER_BYTES]
    if rest and (b"OggS".startswith(rest[:4]) or data.find(b"OggS\x00", position) >= 0):
        state = "truncated (its last page is cut off)" if b"OggS".startswith(rest[:4]) else "damaged"
        raise AudioError(f"{name}: is {state} at byte {position:,}; fetch it again")
    starts = starts or [0]
    return list(zip(starts, [*starts[1:], len(data)], strict=True))
