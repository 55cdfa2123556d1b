"""A row of a manifest as an `Example`, and back: fields, types, answers, and the rule that no sound may be missing.

`from_row` takes rows of any format that `data/formats` knows; `manifest.py` reads and writes files of them. `messages`
follows the OpenAI and Hugging Face convention: `content` is a string, or a list of parts whose `type` is text or audio.
A part is recognised by its `type`, not by its keys, because Arrow gives every part all keys (None for those that do not
apply). Unknown fields are kept in `Example.meta` and written back; an unknown field that looks like a misspelt known
one is an error, and so is a row that names sound in a way that is not understood.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit
from urllib.request import url2pathname

from earwise.data.formats.convert import TEXT_ONLY, recognise, standard_row
from earwise.data.formats.sound_names import find_escaped_tag, find_tag, unread_sound
from earwise.data.readers import clip_spool
from earwise.errors import DataError
from earwise.types import Audio, Example, Part, Role, Split, Text, Turn

SaveClip = Callable[[bytes], Path]
"""Keeps the bytes of an audio file and returns the path of the file."""
FIELDS = (
    "id",
    "messages",
    "choices",
    "answer",
    "reasoning",
    "task",
    "category",
    "difficulty",
    "source",
    "licence",
    "group",
    "split",
    "language",
    "chosen",
    "rejected",
    "text_only",
)
FIELD_SET = frozenset(FIELDS)
OPTIONAL_FIELDS = ("chosen", "rejected", "text_only")
"""Fields that are written only for rows that have them."""
TEXT_DEFAULTS = {
    "task": "open",
    "category": "",
    "source": "",
    "licence": "",
    "group": "",
    "split": "train",
    "language": "en",
}
ROLES: tuple[str, ...] = get_args(Role)
SPLITS: tuple[str, ...] = get_args(Split)


def to_row(example: Example) -> dict[str, Any]:
    """JSON object of an example: the fields in the order of `FIELDS`, then the items of `meta`.

    Raises:
        DataError: if a key of `meta` is the name of a field.
    """
    clashing_keys = [key for key in example.meta if key in FIELDS]
    if clashing_keys:
        raise DataError(f"example {example.id!r}: meta holds the field {clashing_keys[0]!r}; rename it")
    answer = example.answer[0] if len(example.answer) == 1 else list(example.answer) or None
    row: dict[str, Any] = {"id": example.id, "messages": [_message(turn) for turn in example.turns]}
    row |= {"choices": list(example.choices), "answer": answer}
    row |= {name: getattr(example, name) for name in FIELDS[4:] if name not in OPTIONAL_FIELDS}
    row |= {name: list(getattr(example, name)) for name in ("chosen", "rejected") if getattr(example, name)}
    row |= {TEXT_ONLY: True} if example.text_only else {}
    return row | dict(example.meta)


def from_row(
    row: Mapping[str, Any], *, root: Path = Path(), location: str = "row", save_clip: SaveClip = clip_spool.save
) -> Example:
    """Convert a row of any known format to an Example; `from_row(to_row(example), root=example.root) == example`.

    Args:
        row: JSON object; a field that is null counts as absent.
        root: Folder that relative audio paths start from.
        location: Prefix of error messages, for example "train.jsonl:row 3".
        save_clip: Keeps audio that stands inside the row, and returns its path.
    Raises:
        DataError: if the row is of no known format, a field is missing or mistyped, the answer does not fit the
            choices, or sound is named in a way that is not understood.
    """
    if recognise(row) is None:
        _check_names(row, location)
    row = standard_row(row, location)
    _check_names(row, location)
    values = {key: row[key] for key in FIELDS if row.get(key) is not None}
    texts = {name: _text(values.get(name, default), name, location) for name, default in TEXT_DEFAULTS.items()}
    if texts["split"] not in SPLITS:
        raise DataError(
            f"{location}: split {texts['split']!r} is none of {', '.join(SPLITS)}{_suggestion(texts['split'], SPLITS)}"
        )
    identifier = _text_or_number(values["id"], "id", location)
    if not identifier:
        raise DataError(f"{location}: id is empty; every row needs its own")
    turns = _turns(values["messages"], location, save_clip)
    answer = _texts(values.get("answer", []), "answer", location)
    if not answer and turns[-1].role == "assistant":
        turns, answer = turns[:-1], (_reply_text(turns[-1], location),)
    example = Example(
        id=identifier,
        turns=turns,
        answer=answer,
        choices=_texts(values.get("choices", []), "choices", location, single=False),
        reasoning=None if "reasoning" not in values else _text(values["reasoning"], "reasoning", location),
        difficulty=None if "difficulty" not in values else _text(values["difficulty"], "difficulty", location),
        chosen=_texts(values.get("chosen", []), "chosen", location),
        rejected=_texts(values.get("rejected", []), "rejected", location),
        text_only=_flag(values.get(TEXT_ONLY, False), TEXT_ONLY, location),
        root=root,
        meta={key: value for key, value in row.items() if key not in FIELD_SET},
        **texts,
    )
    _check_answer(example, location)
    _check_preferences(example, location)
    _check_sound(example, location)
    return example


@lru_cache(maxsize=4096)  # the same few unknown fields usually occur in every row
def _suggestion(name: str, valid_names: tuple[str, ...]) -> str:
    """End of an error message that suggests the valid name closest to `name`; empty if none is close."""
    close = difflib.get_close_matches(name.lower(), valid_names, 1, 0.8)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_names(row: Mapping[str, Any], location: str) -> None:
    """Reject unknown fields that are almost the name of a missing field: a row with `anwser` would have no answer."""
    unknown_keys = [key for key, value in row.items() if key not in FIELD_SET and value is not None]
    absent_fields = tuple(name for name in FIELDS if row.get(name) is None) if unknown_keys else ()
    for key in unknown_keys:
        if hint := _suggestion(key, absent_fields):
            raise DataError(f"{location}: unknown field {key!r}{hint} (rename either)")


def _text(value: Any, name: str, location: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{location}: {name} is {value!r:.60}, a {type(value).__name__}; write it as a string")
    return value


def _text_or_number(value: Any, name: str, location: str) -> str:
    """A text, or a number as text: ids, labels and counts are often written as numbers."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else _text(value, name, location)


def _flag(value: Any, name: str, location: str) -> bool:
    if not isinstance(value, bool):
        raise DataError(f"{location}: {name} is {value!r:.60}, a {type(value).__name__}; write true or false")
    return value


def _texts(value: Any, name: str, location: str, *, single: bool = True) -> tuple[str, ...]:
    if single and isinstance(value, str | int | float):
        return (_text_or_number(value, name, location),)
    if not isinstance(value, list | tuple):
        raise DataError(f"{location}: {name} is {value!r:.60}, a {type(value).__name__}; write a list of strings")
    # a list comprehension is faster than a generator expression, and this runs for millions of rows
    return tuple([_text_or_number(item, name, location) for item in value])


def _turns(messages: Any, location: str, save_clip: SaveClip) -> tuple[Turn, ...]:
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{location}: messages is {messages!r:.60}; write a list with at least one message")
    return tuple(
        _turn(message, f"{location}: message {number}", save_clip) for number, message in enumerate(messages, 1)
    )


def _turn(message: Any, location: str, save_clip: SaveClip) -> Turn:
    _check_keys(message, ("role", "content"), location)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"{location}: role {role!r} is none of {', '.join(ROLES)}{_suggestion(str(role), ROLES)}")
    if isinstance(content, str):
        return Turn(role, (Text(content),))
    if not isinstance(content, list | tuple):
        raise DataError(f"{location}: content is {content!r:.60}; write a string or a list of parts")
    return Turn(
        role, tuple(_part(part, f"{location}, part {number}", save_clip) for number, part in enumerate(content, 1))
    )


def _part(part: Any, location: str, save_clip: SaveClip) -> Part:
    _check_keys(part, ("type", "text", "audio", "start", "end"), location)
    kind = part.get("type")
    if kind not in ("text", "audio"):
        raise DataError(f"{location}: type {kind!r} is none of text, audio{_suggestion(str(kind), ('text', 'audio'))}")
    value = part.get(kind)
    if kind == "audio" and value and isinstance(value, str | bytes):
        return Audio(_clip_path(value, location, save_clip), *_segment(part, location))
    if not isinstance(value, str) or kind == "audio":
        raise DataError(f"{location}: {kind} is {value!r:.60}; write a {'path' if kind == 'audio' else 'string'}")
    if segment_key := next((key for key in ("start", "end") if part.get(key) is not None), None):
        raise DataError(f"{location}: {segment_key} in a text part; only an audio part is cut to a segment")
    return Text(value)


def _segment(part: Mapping[str, Any], location: str) -> tuple[float | None, float | None]:
    """`start` and `end` of an audio part, in seconds."""
    for key in ("start", "end"):
        value = part.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 <= value < math.inf):
            raise DataError(f"{location}: {key} is {value!r:.60}; write the seconds from the beginning of the file")
    start, end = part.get("start"), part.get("end")
    if end is not None and end <= (start or 0):
        raise DataError(f"{location}: end {end:g} s is not after start {start or 0:g} s; correct either")
    return start, end


def _clip_path(value: str | bytes, location: str, save_clip: SaveClip) -> str:
    """Path of a clip; audio that stands inside the row is kept as a file first."""
    if isinstance(value, bytes):
        return str(save_clip(value))
    scheme = value.partition(":")[0].lower() if ":" in value[:8] else ""
    if scheme == "data":
        return str(save_clip(clip_spool.data_url_bytes(value, location)))
    if scheme == "file" and value[5:7] == "//":
        return url2pathname(urlsplit(value).path)
    if scheme in ("http", "https", "s3", "gs", "hf", "ftp"):
        raise DataError(f"{location}: {value[:80]!r} is an address; download the file and write its path")
    if value.startswith("~"):
        return str(Path(value).expanduser())
    is_windows_path = "\\" in value and "/" not in value and not re.match(r"\\\\|[A-Za-z]:", value)
    return value.replace("\\", "/") if is_windows_path else value  # a relative path written on Windows


def _reply_text(turn: Turn, location: str) -> str:
    """Text of the assistant's last turn, which is the answer of a row that has no other."""
    if any(isinstance(part, Audio) for part in turn.parts):
        raise DataError(f"{location}: the assistant's reply holds a clip; replies are text")
    return "".join(part.text for part in turn.parts if isinstance(part, Text))


def _check_sound(example: Example, location: str) -> None:
    """Refuse a row in which sound is meant and not there: a tag in a text, or a key that names sound and no clip.

    A row that declares `text_only` must have no clip, and its texts may hold anything.
    """
    has_audio = any(isinstance(part, Audio) for turn in example.turns for part in turn.parts)
    if example.text_only:
        if has_audio or (key := unread_sound(example.meta)):
            sound = "an audio part" if has_audio else repr(key)
            raise DataError(f"{location}: text_only is true and the row has {sound}; take one of them out")
        return
    texts = [part.text for turn in example.turns for part in turn.parts if isinstance(part, Text)]
    for text in (*texts, *example.choices, *example.answer, *example.chosen, *example.rejected):
        if (tag := find_tag(text)) is not None:
            remedy = "remove it" if has_audio else "name the clips, in `audios` for example, or say text_only: true"
            raise DataError(f"{location}: the text holds {tag!r}, which stands for a clip; {remedy}")
        if (tag := find_escaped_tag(text)) is not None:
            raise DataError(f"{location}: the text holds {tag!r}, a tag with escaped brackets; write it as <audio>")
    if not has_audio and (key := unread_sound(example.meta)):
        raise DataError(
            f"{location}: no clip, but the key {key!r} names sound; put the path into an audio part of the message or "
            "into `audios`"
        )


def _check_keys(value: Any, valid_keys: tuple[str, ...], location: str) -> None:
    """Reject unknown keys in messages and parts: only fields at the top level of a row can be kept in `meta`."""
    if not isinstance(value, Mapping):
        raise DataError(f"{location}: {value!r:.60} is no object; write one with {', '.join(valid_keys)}")
    for key in value:
        if key not in valid_keys and value[key] is not None:
            raise DataError(
                f"{location}: unknown key {key!r}; known keys are {', '.join(valid_keys)}{_suggestion(key, valid_keys)}"
            )


def _check_answer(example: Example, location: str) -> None:
    choices = example.choices
    for choice in choices:
        if not choice.strip():
            raise DataError(f"{location}: a choice is empty; give every choice a text")
        if choices.count(choice) > 1:
            raise DataError(f"{location}: choice {choice!r} occurs twice; choices must differ")
    if len(choices) == 1:
        raise DataError(f"{location}: only one choice, {choices[0]!r}; give at least two, or none")
    for answer in example.answer:
        if choices and answer not in choices:
            listed = ", ".join(repr(choice) for choice in choices[:8])
            raise DataError(
                f"{location}: answer {answer!r:.60} is none of the choices {listed}{_suggestion(answer, choices)}"
            )
    if choices and len(example.answer) > 1:
        raise DataError(
            f"{location}: {len(example.answer)} answers with choices; one of them is right, or leave out the choices"
        )


def _check_preferences(example: Example, location: str) -> None:
    preferred = example.chosen or example.answer
    if example.chosen and not example.rejected:
        raise DataError(f"{location}: chosen without rejected; a preference needs both")
    for rejected in example.rejected:
        if rejected in preferred:
            raise DataError(
                f"{location}: rejected {rejected!r:.60} is {'chosen' if example.chosen else 'the answer'} too; "
                "take one out"
            )
        if example.choices and not example.chosen and rejected not in example.choices:
            raise DataError(
                f"{location}: rejected {rejected!r:.60} is none of the choices; "
                "give `chosen` as well if these are whole completions"
            )


def _message(turn: Turn) -> dict[str, Any]:
    if len(turn.parts) == 1 and isinstance(turn.parts[0], Text):
        return {"role": turn.role, "content": turn.parts[0].text}
    return {"role": turn.role, "content": [_part_row(part) for part in turn.parts]}


def _part_row(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    segment = {"start": part.start, "end": part.end}
    return {"type": "audio", "audio": part.path} | {key: time for key, time in segment.items() if time is not None}
