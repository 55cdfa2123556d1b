"""Conversations of any format as messages of pieces: texts, clips, and empty places that a list of clips fills.

Formats differ in where the clips are named: inside a part of a message (OpenAI, Hugging Face), or in a list beside the
conversation, with a tag (`<audio>`) or an empty part for each place in the text. Both become `Message`s here;
`place_clips` fills the places in order and refuses a row whose places and clips do not match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from earwise.data.formats.sound_names import TAG
from earwise.errors import DataError

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
"""Role in a row -> role in a manifest."""
PART_KEYS = ("type", "text", "audio", "input_audio", "audio_url", "path", "url", "start", "end")
CLIP_VALUE_KEYS = ("audio", "input_audio", "audio_url", "path", "url")
"""Keys of an audio part of which exactly one holds the clip."""
NEMO_TURN_KEYS = ("from", "value", "type", "duration", "offset")
"""Keys of a turn of NeMo's conversations."""
IGNORED_MESSAGE_KEYS = {"weight": (1,), "loss": (True,), "name": None, "id": None}
"""Keys of a message that change nothing -> the values with which this is so; None: any value."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip inside a message.

    Attributes:
        audio: Path or address of the file, a `data:` URL, or its bytes.
        times: The keys `start` and `end` of the part (seconds), where it has them.
    """

    audio: str | bytes
    times: tuple[tuple[str, Any], ...] = ()

    def part(self) -> dict[str, Any]:
        """The audio part of a manifest row."""
        return {"type": "audio", "audio": self.audio, **dict(self.times)}


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a clip that is named elsewhere.

    Attributes:
        tag: The tag as it is written, for error messages.
        number: Number of the clip, from 1; None for the next clip in order.
    """

    tag: str
    number: int | None = None


Piece = str | Clip | Slot


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation."""

    role: str
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """All texts of the message, joined."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    def row(self) -> dict[str, Any]:
        """The message of a manifest row; its pieces hold no `Slot` any more."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], str):
            return {"role": self.role, "content": self.pieces[0]}
        parts = [piece.part() if isinstance(piece, Clip) else _text_part(piece) for piece in self.pieces]
        return {"role": self.role, "content": parts}


def parse_messages(value: Any, location: str, *, tags: bool = True) -> list[Message]:
    """The messages of a conversation.

    Args:
        value: List of objects with `role` and `content`, or with `from` and `value` (ShareGPT).
        location: Prefix of error messages.
        tags: Whether tags in texts are places for clips; False leaves them in the text.
    Raises:
        DataError: naming the message and the part that cannot be read.
    """
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{location}: messages is {value!r:.60}; write a list with at least one message")
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        place = f"{location}: message {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{place}: {message!r:.60} is no object; write one with role, content")
        if "from" in message and message.get("type") in ("audio", "text"):
            _append_turn(messages, message, place, tags)
            continue
        keys = ("from", "value") if "from" in message else ("role", "content")
        for key, item in message.items():
            harmless = IGNORED_MESSAGE_KEYS.get(key, ())
            if key not in keys and item is not None and harmless is not None and item not in harmless:
                raise DataError(f"{place}: unknown key {key!r}; known keys are {', '.join(keys)}")
        role = _role(message.get(keys[0]), place)
        messages.append(Message(role, parse_content(message.get(keys[1]), place, tags=tags)))
    return messages


def _role(role: Any, location: str) -> str:
    """The role of a manifest that a role of a row is."""
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise DataError(f"{location}: role {role!r:.40} is none of {', '.join(ROLES)}")
    return ROLES[role.lower()]


def _append_turn(messages: list[Message], turn: Mapping[str, Any], location: str, tags: bool) -> None:
    """Append a turn of NeMo's conversations, which hold either a text or a clip; turns of one role are one message.

    Args:
        messages: The messages so far; the last one is extended if it has the same role.
        turn: Object with `from`, `value`, `type` (`audio` or `text`), and perhaps `offset` and `duration` in seconds.
        location: Prefix of error messages.
        tags: Whether tags in texts are places for clips.
    """
    for key, value in turn.items():
        if key not in NEMO_TURN_KEYS and value is not None:
            raise DataError(f"{location}: unknown key {key!r}; known keys are {', '.join(NEMO_TURN_KEYS)}")
    role, value = _role(turn["from"], location), turn.get("value")
    if turn["type"] == "audio":
        offset = turn.get("offset")
        times = {"start": offset, "end": offset + turn["duration"]} if offset and turn.get("duration") else {}
        pieces: tuple[Piece, ...] = (replace(parse_clip(value, location), times=tuple(times.items())),)
    else:
        pieces = parse_content(value, location, tags=tags)
    if messages and messages[-1].role == role:
        messages[-1] = replace(messages[-1], pieces=(*messages[-1].pieces, *pieces))
    else:
        messages.append(Message(role, pieces))


def parse_content(content: Any, location: str, *, tags: bool = True) -> tuple[Piece, ...]:
    """The pieces of a message, from a text with tags or a list of parts; see `parse_messages`."""
    if isinstance(content, str):
        return text_pieces(content) if tags else (content,)
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        raise DataError(f"{location}: content is {content!r:.60}; write a string or a list of parts")
    pieces: list[Piece] = []
    for number, part in enumerate(content, 1):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        pieces += _part_pieces(part, f"{location}, part {number}", tags)
    return tuple(pieces)


def text_pieces(text: str) -> tuple[Piece, ...]:
    """A text, taken apart at its tags. One line break after a tag is dropped: the chat templates write their own.

    >>> text_pieces("First <audio>\\nthen <audio>what?")
    ('First ', Slot(tag='<audio>', number=None), 'then ', Slot(tag='<audio>', number=None), 'what?')
    """
    pieces: list[Piece] = []
    position = 0
    for match in TAG.finditer(text) if "<" in text else ():
        pieces.append(text[position : match.start()])
        number = match["number"] or match["placeholder"]
        pieces.append(Clip(match["path"].strip()) if match["path"] else Slot(match[0], int(number) if number else None))
        position = match.end() + text.startswith("\n", match.end())
    pieces.append(text[position:])
    kept = tuple(piece for piece in pieces if piece != "")
    return kept or ("",)


def place_clips(messages: Sequence[Message], clips: Sequence[Clip], location: str) -> list[Message]:
    """Fill the empty places of a conversation with clips, in order, or by their numbers.

    Clips without any place for them come first in the first user message.

    Args:
        messages: The conversation.
        clips: The clips that the row names beside the conversation.
        location: Prefix of error messages.
    Raises:
        DataError: if the numbers of places and of clips differ.
    """
    slots = [piece for message in messages for piece in message.pieces if isinstance(piece, Slot)]
    named = [piece for message in messages for piece in message.pieces if isinstance(piece, Clip)]
    if not clips and slots:
        problem = (
            "stands beside audio parts; remove it" if named else "has no clip; name its file, in `audios` for example"
        )
        raise DataError(f"{location}: {slots[0].tag!r} is a place for a clip and {problem}")
    if clips and not slots:
        if named:
            if [clip.audio for clip in named] == [clip.audio for clip in clips]:
                return list(messages)
            raise DataError(
                f"{location}: {len(named)} clips stand inside the messages and {len(clips)} beside them; "
                "name every clip once"
            )
        return _clips_first(messages, clips, location)
    chosen = _numbered(slots, clips, location)
    filled = iter(chosen)
    return [
        replace(message, pieces=tuple(next(filled) if isinstance(piece, Slot) else piece for piece in message.pieces))
        for message in messages
    ]


def _numbered(slots: Sequence[Slot], clips: Sequence[Clip], location: str) -> list[Clip]:
    """The clip of every place."""
    if len(slots) != len(clips):
        raise DataError(
            f"{location}: {len(slots)} tags such as {slots[0].tag!r} and {len(clips)} clips; give one clip per tag"
            if slots
            else f"{location}: no place for {len(clips)} clips"
        )
    numbers = [slot.number for slot in slots]
    if all(number is None for number in numbers):
        return list(clips)
    by_number = [number for number in numbers if number is not None]
    if sorted(by_number) != list(range(1, len(clips) + 1)):
        raise DataError(
            f"{location}: the tags {', '.join(slot.tag for slot in slots)} do not name each of {len(clips)} clips "
            "once; number them from 1"
        )
    return [clips[number - 1] for number in by_number]


def _clips_first(messages: Sequence[Message], clips: Sequence[Clip], location: str) -> list[Message]:
    """The conversation with the clips at the beginning of the first user message."""
    for index, message in enumerate(messages):
        if message.role == "user":
            texts = tuple(piece for piece in message.pieces if piece != "")
            first = replace(message, pieces=(*clips, *texts))
            return [*messages[:index], first, *messages[index + 1 :]]
    raise DataError(f"{location}: {len(clips)} clips and no message of the user to put them in")


def parse_clips(value: Any, location: str) -> list[Clip]:
    """The clips of a key beside the conversation: a clip, or a list of clips (see `parse_clip`)."""
    if isinstance(value, list | tuple):
        return [parse_clip(item, f"{location}, clip {number}") for number, item in enumerate(value, 1)]
    return [parse_clip(value, location)]


def parse_clip(value: Any, location: str) -> Clip:
    """A clip in any of its forms.

    Args:
        value: Path, address or `data:` URL; bytes of a file; an object with `path`, `bytes`, `url` or `data` (base64)
            and perhaps `format`, as OpenAI and Hugging Face's Audio feature write it.
        location: Prefix of error messages.
    """
    if isinstance(value, str | bytes) and value:
        return Clip(value)
    if isinstance(value, Mapping):
        times = tuple((key, value[key]) for key in ("start", "end") if value.get(key) is not None)
        if isinstance(value.get("bytes"), bytes) and value["bytes"]:
            return Clip(value["bytes"], times)
        for key in ("path", "url", "audio"):
            if isinstance(value.get(key), str) and value[key]:
                return Clip(value[key], times)
        if isinstance(value.get("data"), str) and value["data"]:
            data = value["data"]
            name = value.get("format") if isinstance(value.get("format"), str) else "wav"
            return Clip(data if data.startswith("data:") else f"data:audio/{name};base64,{data}", times)
    raise DataError(f"{location}: {value!r:.60} is no clip; give a path, a data: URL, or an object with path or data")


def _part_pieces(part: Any, location: str, tags: bool) -> tuple[Piece, ...]:
    """The pieces of a part of a message."""
    if not isinstance(part, Mapping):
        raise DataError(f"{location}: {part!r:.60} is no object; write one with type, text, audio")
    part = {key: item for key, item in part.items() if item is not None}
    kind = part.get("type") or ("text" if "text" in part else "audio" if part else None)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise DataError(f"{location}: text is {part.get('text')!r:.60}; write a string")
        return text_pieces(part["text"]) if tags else (part["text"],)
    if kind not in ("audio", "input_audio", "audio_url"):
        raise DataError(f"{location}: type {kind!r:.40} is none of text, audio, input_audio, audio_url")
    for key in part:
        if key not in PART_KEYS:
            raise DataError(f"{location}: unknown key {key!r}; known keys are {', '.join(PART_KEYS)}")
    values = [key for key in CLIP_VALUE_KEYS if key in part]
    if not values:
        return (Slot(f"part of type {kind}"),)
    if len(values) > 1:
        raise DataError(f"{location}: {' and '.join(values)} both name the clip; keep one of them")
    clip = parse_clip(part[values[0]], f"{location}: {values[0]}")
    times = tuple((key, part[key]) for key in ("start", "end") if key in part)
    return (replace(clip, times=times or clip.times),)


def _text_part(piece: Piece) -> dict[str, Any]:
    return {"type": "text", "text": piece}
