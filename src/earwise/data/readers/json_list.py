"""Reads the items of a JSON list of any size, holding only the current item in memory.

Used for published files (`data/sources/row_readers.py`), where a damaged item is skipped, and for manifests that are
one list (`row_files.py`), where it is an error.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from earwise.data.readers.text_lines import half_character

CHUNK_CHARS = 1 << 20
MAX_ITEM_CHARS = 1 << 22  # a longer item is treated as damaged
_SEPARATORS = re.compile(r"[\s,]*")
_NEXT_ITEM = re.compile(r"\}\s*,\s*(?=\{)")


def list_items(
    path: Path, handle: IO[str], buffer: str, on_skip: Callable[[str], None], *, max_item_chars: int | None = None
) -> Iterator[tuple[str, Any]]:
    """The items of a JSON list as pairs `(location, value)`, read in chunks.

    After an item that is not valid JSON, reading continues at the next object that begins after a comma.

    Args:
        path: File, for error messages.
        handle: The open file, positioned after `buffer`.
        buffer: First part of the file, from the first character after the list's opening bracket.
        on_skip: Callback for every damaged item.
        max_item_chars: Length from which an item that is not complete is treated as damaged; None: `MAX_ITEM_CHARS`.
    """
    decoder, position, number = json.JSONDecoder(), 0, 0
    longest = max_item_chars or MAX_ITEM_CHARS
    while True:
        position = _SEPARATORS.match(buffer, position).end()  # type: ignore[union-attr]  # matches the empty string
        if position == len(buffer):
            buffer, position = handle.read(CHUNK_CHARS), 0
            if not buffer:
                on_skip(f"{path}:item {number + 1}: the list ends in the middle; download the file again")
                return
            continue
        if buffer[position] == "]":
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError) as error:
            # each further chunk doubles what is parsed again, so that a long item takes linear time
            wanted = max(CHUNK_CHARS, len(buffer) - position)
            next_chunk = handle.read(wanted) if len(buffer) - position < longest else ""
            if next_chunk:  # the item may continue in the next chunk
                buffer, position = buffer[position:] + next_chunk, 0
                continue
            number += 1
            on_skip(f"{path}:item {number}: not JSON ({str(error.args[0]).split(':')[0]})")
            next_item = _NEXT_ITEM.search(buffer, position)
            if next_item is None:
                return
            position = next_item.end()
            continue
        number += 1
        if "\ufffd" in buffer[position:end]:
            on_skip(f"{path}:item {number}: is not UTF-8 text; save the file as UTF-8")
        elif message := half_character(buffer[position:end], value):
            on_skip(f"{path}:item {number}: {message}")
        else:
            yield f"{path}:item {number}", value
        position = end
