"""Rows whose columns hold a conversation, or a whole manifest row: their clips take the places that the row names.

`earwise build parquet`, `build shards` and `build convert` write such rows: Parquet files have the manifest row as JSON
in the column `example`, tar samples in their `.json`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from earwise.data.interchange.foreign_row import Clip, ForeignRow
from earwise.errors import DataError

EXAMPLE_COLUMN = "example"
CONVERSATION_KEYS = frozenset({"messages", "conversations", "query"})
"""Columns that make a row a conversation (see `data/formats`)."""
CLIPS_COLUMN = "audios"
"""Column under which the readers of conversations find the clips of a row."""
PathText = Callable[[Path], str]


def packed_row(row: ForeignRow, path_text: PathText) -> dict[str, Any] | None:
    """The manifest row that a row carries whole, with the paths of its stored clips; None for any other row.

    Args:
        row: The foreign row.
        path_text: Writes the path of a clip.
    Raises:
        DataError: if the row has another number of clips than its messages name.
    """
    native = _carried_row(row.values)
    if native is None:
        return None
    paths = [path_text(clip.path) for clip in _clips(row.values)]
    named = [part for message in native["messages"] for part in _audio_parts(message)]
    if len(named) != len(paths):
        raise DataError(
            f"{row.location}: its messages name {len(named)} clips and {len(paths)} are stored; pack it again"
        )
    places = iter(paths)
    messages = [_with_paths(message, places) for message in native["messages"]]
    return native | {"messages": messages}


def conversation_row(row: ForeignRow, path_text: PathText) -> dict[str, Any] | None:
    """A row in the form of a conversation (`data/formats`), with the paths of its stored clips; None for any other row.

    Args:
        row: The foreign row.
        path_text: Writes the path of a clip.
    """
    values = {name: value for name, value in row.values.items() if value is not None}
    if not CONVERSATION_KEYS & values.keys():
        return None
    plain = {name: value for name, value in values.items() if not is_clip_value(value)}
    clips = _clips(values)
    return plain | ({CLIPS_COLUMN: [path_text(clip.path) for clip in clips]} if clips else {})


def _carried_row(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest row in the column `example`, or the columns themselves if they are one."""
    example = values.get(EXAMPLE_COLUMN)
    if isinstance(example, str) and example.startswith("{"):
        try:
            values = json.loads(example)
        except ValueError:
            return None
    messages = values.get("messages")
    if "id" not in values or not isinstance(messages, list) or not messages:
        return None
    if not all(isinstance(message, Mapping) and "role" in message for message in messages):
        return None
    if not any(_audio_parts(message) for message in messages):
        return None
    return {name: value for name, value in values.items() if not is_clip_value(value)}


def _clips(values: Mapping[str, Any]) -> list[Clip]:
    """The stored clips of a row, in the order of its columns."""
    clips: list[Clip] = []
    for value in values.values():
        if is_clip_value(value):
            clips += [value] if isinstance(value, Clip) else value
    return clips


def is_clip_value(value: Any) -> bool:
    """Whether a column's value is a clip or a list of clips."""
    return isinstance(value, Clip) or (isinstance(value, list) and bool(value) and isinstance(value[0], Clip))


def _audio_parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a message that name audio as a manifest does."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") == "audio" and "audio" in part]


def _with_paths(message: Mapping[str, Any], paths: Any) -> dict[str, Any]:
    """A message whose audio parts name the next of `paths`."""
    content = message["content"]
    if isinstance(content, list):
        content = [
            {**part, "audio": next(paths)} if isinstance(part, Mapping) and part.get("type") == "audio" else part
            for part in content
        ]
    return {**message, "content": content}
