"""Conversations: `messages` (OpenAI, Hugging Face, ms-swift, TRL) and `conversations` (ShareGPT, LLaMA-Factory)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from earwise.data.formats.messages import Clip, Message, parse_messages
from earwise.errors import DataError


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row of another format, taken apart.

    Attributes:
        messages: The conversation, with empty places for clips that are named beside it.
        used_keys: Keys of the row that are read; all others are kept as they are.
        fields: Fields of the manifest row that the used keys hold: `answer`, `chosen`, `rejected`.
    """

    messages: list[Message]
    used_keys: frozenset[str]
    fields: dict[str, Any] = field(default_factory=dict)


def read_messages(row: Mapping[str, Any], location: str, *, tags: bool) -> ParsedRow:
    """A row with `messages`, and perhaps `system` and the rejected reply of a preference (ms-swift)."""
    messages = parse_messages(row["messages"], location, tags=tags)
    return _with_replies(row, messages, "messages", location)


def read_conversations(row: Mapping[str, Any], location: str, *, tags: bool) -> ParsedRow:
    """A row with `conversations` and perhaps `system`, and `chosen` and `rejected` replies (LLaMA-Factory)."""
    messages = parse_messages(row["conversations"], location, tags=tags)
    return _with_replies(row, messages, "conversations", location)


def _with_replies(row: Mapping[str, Any], messages: list[Message], key: str, location: str) -> ParsedRow:
    """A conversation with the system message and the preference that stand beside it."""
    used_keys, fields = {key}, dict[str, Any]()
    if isinstance(row.get("system"), str):
        used_keys.add("system")
        messages = with_system(messages, row["system"])
    for name in ("rejected_response", "rejected_messages"):
        if row.get(name):
            used_keys.add(name)
            fields["rejected"] = reply_texts(row[name], f"{location}: {name}")
    if row.get("chosen") is not None or row.get("rejected") is not None:
        for name in ("chosen", "rejected"):
            if row.get(name) is not None:
                used_keys.add(name)
                fields[name] = reply_texts(row[name], f"{location}: {name}")
    return ParsedRow(messages, frozenset(used_keys), fields)


def with_system(messages: list[Message], text: str) -> list[Message]:
    """The conversation with a system message, unless it begins with one or the text is empty."""
    if not text or (messages and messages[0].role == "system"):
        return messages
    return [Message("system", (text,)), *messages]


def reply_texts(value: Any, location: str) -> list[str]:
    """The texts of one or several replies: a text, a message, a list of texts, or messages that end with the reply.

    >>> reply_texts([{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "A dog."}], "row 1")
    ['A dog.']
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [_reply(value, location)]
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{location}: {value!r:.60} is no reply; write a string, a list of strings, or messages")
    if all(isinstance(item, str) for item in value):
        return list(value)
    return [_reply(value[-1], location)]


def _reply(message: Any, location: str) -> str:
    """The text of a message of the assistant."""
    (parsed,) = parse_messages([message], location, tags=False)
    if parsed.role != "assistant":
        raise DataError(f"{location}: the last message has role {parsed.role}; a reply is the assistant's")
    if any(isinstance(piece, Clip) for piece in parsed.pieces):
        raise DataError(f"{location}: a reply holds a clip; replies are text")
    return parsed.text
