"""Recognises the format of a row by its keys, and converts the row to a row of earwise's own manifest format.

`standard_row` is the only entry point: manifests, packed data sets and `earwise build convert` use it for rows of any
origin. Recognition is by keys alone, and a row that fits no format is refused with the keys that it has.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from earwise.data.formats.chat import ParsedRow, read_conversations, read_messages
from earwise.data.formats.flat import read_alpaca, read_prompt, read_query, read_question
from earwise.data.formats.messages import Clip, Message, parse_clips, place_clips
from earwise.data.formats.sound_names import clip_keys
from earwise.errors import DataError

OWN = "earwise"
TEXT_ONLY = "text_only"
"""Field by which a row declares that it is meant to have no sound."""


class RowReader(Protocol):
    """Takes a row of one format apart."""

    def __call__(self, row: Mapping[str, Any], location: str, *, tags: bool) -> ParsedRow:
        """The parsed row; `tags` says whether tags in texts are places for clips.

        Raises:
            DataError: with `location`, if the row is wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A format of rows.

    Attributes:
        name: Name in messages.
        matches: Whether a row has the keys of the format.
        read: Takes a row apart.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: RowReader


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(row.get(key) is not None for key in keys)


def _is_prompt_row(row: Mapping[str, Any]) -> bool:
    if row.get("prompt") is not None:
        return any(row.get(key) is not None for key in ("completion", "chosen", "rejected", "answer"))
    return isinstance(row.get("chosen"), list) and len(row["chosen"]) > 1 and isinstance(row["chosen"][0], Mapping)


FORMATS = (
    RowFormat(
        "OpenAI chat",
        lambda row: _has("messages")(row) and bool(_part_types(row["messages"]) & {"input_audio", "audio_url"}),
        read_messages,
    ),
    RowFormat("ms-swift", lambda row: _has("messages")(row) and bool(clip_keys(row)), read_messages),
    RowFormat("Hugging Face messages", _has("messages"), read_messages),
    RowFormat("Audio Flamingo", _has("conversations", "sound"), read_conversations),
    RowFormat("ShareGPT", _has("conversations"), read_conversations),
    RowFormat("query and response", _has("query"), read_query),
    RowFormat("Alpaca", _has("instruction"), read_alpaca),
    RowFormat("prompt and completion", _is_prompt_row, read_prompt),
    RowFormat("question and answer", _has("question"), read_question),
)
"""The formats, in the order in which they are tried. A row of earwise's own format is recognised before all of them."""


def recognise(row: Mapping[str, Any]) -> str | None:
    """Name of the format of a row: `earwise`, the name of one of `FORMATS`, or None for a row that fits none.

    >>> recognise({"query": "<audio>What?", "response": "A dog.", "audios": ["a.wav"]})
    'query and response'
    """
    if _is_own(row):
        return OWN
    row_format = _match(row)
    return None if row_format is None else row_format.name


def standard_row(row: Mapping[str, Any], location: str) -> Mapping[str, Any]:
    """A row of any format as a row of earwise's own.

    Args:
        row: The row: plain JSON values, and bytes for the content of audio files.
        location: Prefix of error messages.
    Returns:
        The same object if it is a row of earwise's own format; otherwise a new row with `id`, `messages`, what the row
        says about its answer, and all keys that the format does not define. The value of an audio part is a path, a
        `data:` URL, or bytes. A row without `id` gets one from its content.
    Raises:
        DataError: if the row fits no format or is wrong, or its tags and clips do not match.
    """
    if _is_own(row):
        return row
    row_format = _match(row)
    if row_format is None:
        raise DataError(
            f"{location}: the keys {', '.join(map(str, row))[:80]} are of no known format; write messages, "
            "conversations, query/response, prompt/completion, instruction/output or question/answer, and the clips in "
            "`audios`"
        )
    for key in ("images", "videos", "image", "video"):
        if row.get(key):
            raise DataError(
                f"{location}: {key} is {row[key]!r:.60}; only text and sound can be used, leave the row out"
            )
    text_only = row.get(TEXT_ONLY) is True
    parsed = row_format.read(row, location, tags=not text_only)
    sources = [] if text_only else [key for key in clip_keys(row) if key not in parsed.used_keys]
    messages = parsed.messages if text_only else place_clips(parsed.messages, _clips(row, sources, location), location)
    fields = dict(parsed.fields)
    messages = _take_reply(row, messages, fields, location)
    if row.get("answer") is not None and "answer" not in parsed.used_keys:
        fields.pop("answer", None)  # the row's own accepted answers, beside the reply
    remaining = {key: value for key, value in row.items() if key not in parsed.used_keys and key not in sources}
    identifier = row["id"] if row.get("id") is not None else content_id(row)
    return {**remaining, **fields, "id": identifier, "messages": [message.row() for message in messages]}


def content_id(row: Mapping[str, Any]) -> str:
    """The id of a row that has none, made from its content: the same row has the same id wherever it stands."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=_digest)
    return f"row-{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


def _digest(value: Any) -> str:
    """Stands for a value that JSON cannot hold, such as the bytes of a file."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


def _match(row: Mapping[str, Any]) -> RowFormat | None:
    return next((row_format for row_format in FORMATS if row_format.matches(row)), None)


def _is_own(row: Mapping[str, Any]) -> bool:
    """Whether a row is of earwise's own format: an id, texts and audio parts with paths, and no list of clips beside.

    A row that names a clip both inside its messages and beside them is the own format's as well: a field such as
    `audio_path` that repeats the path is kept.
    """
    messages = row.get("messages")
    if row.get("id") is None or not isinstance(messages, list | tuple):
        return False
    if any(row.get(key) is not None for key in ("rejected_response", "rejected_messages", "system")):
        return False
    if any(_holds_messages(row.get(key)) for key in ("chosen", "rejected")):
        return False
    has_clips = False
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            continue
        if not isinstance(content, list | tuple):
            return False
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", "audio") or not isinstance(part.get(kind), str):
                return False
            has_clips = has_clips or kind == "audio"
    return has_clips or not clip_keys(row)


def _holds_messages(value: Any) -> bool:
    """Whether a reply is given as a message, or as messages."""
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_holds_messages, value)))


def _part_types(messages: Any) -> set[Any]:
    """The types of all parts of all messages."""
    if not isinstance(messages, list | tuple):
        return set()
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    return {part.get("type") for part in parts if isinstance(part, Mapping) and isinstance(part.get("type"), str)}


def _clips(row: Mapping[str, Any], keys: list[str], location: str) -> list[Clip]:
    """The clips that a row names beside its conversation; several keys must name the same ones."""
    lists = [parse_clips(row[key], f"{location}: {key}") for key in keys]
    if any(clips != lists[0] for clips in lists):
        raise DataError(f"{location}: {' and '.join(keys)} name different clips; keep one of these keys")
    return lists[0] if lists else []


def _take_reply(
    row: Mapping[str, Any], messages: list[Message], fields: dict[str, Any], location: str
) -> list[Message]:
    """Take the assistant's last message out of a conversation; without another answer it is the answer.

    Of a row with a rejected reply, it is also the chosen reply: both are whole replies, word for word.
    """
    reply = None
    if messages and messages[-1].role == "assistant":
        if any(not isinstance(piece, str) for piece in messages[-1].pieces):
            raise DataError(f"{location}: the assistant's reply holds a clip; replies are text")
        *messages, last = messages
        reply = last.text
    if reply is None and isinstance(fields.get("answer"), str):
        reply = fields["answer"]
    if fields.get("rejected") and not fields.get("chosen") and reply is not None:
        fields["chosen"] = [reply]
    if (
        row.get("answer") is None
        and "answer" not in fields
        and (reply is not None or len(fields.get("chosen", ())) == 1)
    ):
        fields["answer"] = reply if reply is not None else fields["chosen"][0]
    return messages
