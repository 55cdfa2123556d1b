"""The manifest format: JSON lines, one `Example` per line, read and written without loss.

Every builder writes manifests, and training and evaluation read them. `messages` follows the OpenAI and Hugging Face
convention: `content` is a string, or a list of parts whose `type` is text or audio. A part is recognised by its `type`,
not by its keys, because Arrow gives every part all keys (None for those that do not apply). Unknown fields are kept in
`Example.meta` and written back; an unknown field that looks like a misspelt known one is an error. Error messages name
the file and the row (line number, counted from 1).
"""

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from earwise.errors import DataError
from earwise.files import write_jsonl
from earwise.types import Audio, Example, Part, Role, Split, Text, Turn

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
)
FIELD_SET = frozenset(FIELDS)
PREFERENCE_FIELDS = ("chosen", "rejected")
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


def read(path: Path | str, *, check_files: bool = True) -> list[Example]:
    """Read a whole manifest.

    Args:
        path: Manifest; relative audio paths start from its folder.
        check_files: Whether to require that every audio file exists.
    Raises:
        DataError: for an unreadable or empty manifest, and for the first invalid row (see `iterate`).
    """
    examples = list(iterate(Path(path), check_files=check_files))
    if not examples:
        raise DataError(f"{path}: holds no rows; write at least one")
    return examples


def iterate(path: Path, *, check_files: bool = False) -> Iterator[Example]:
    """Read a manifest row by row; blank lines are skipped.

    Args:
        path: Manifest; relative audio paths start from its folder.
        check_files: Whether to require that every audio file exists.
    Raises:
        DataError: naming `file:row N`, for invalid JSON, a missing or mistyped field, a misspelt field name, an answer
            that is none of the choices, equal choices, a repeated id, or (with `check_files`) a missing audio file.
    """
    root, first_row, existing_files = path.parent, dict[str, int](), set[str]()
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                location = f"{path}:row {number}"
                example = from_line(
                    line, root=root, location=location, existing_files=existing_files if check_files else None
                )
                if example.id in first_row:
                    raise DataError(
                        f"{location}: id {example.id!r} is taken by row {first_row[example.id]}; ids must differ"
                    )
                first_row[example.id] = number
                yield example
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); a manifest is JSON lines"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def select(rows: Sequence[Example], conditions: Mapping[Any, str]) -> list[Example]:
    """Filter rows by their fields.

    Args:
        rows: Examples of a manifest.
        conditions: Field name -> value that the field must have, as a recipe gives them under `where`.
    """
    return [row for row in rows if all(getattr(row, key) == value for key, value in conditions.items())]


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write a manifest atomically.

    Args:
        path: File to write; relative audio paths are rewritten to start from its folder.
        examples: Rows of the manifest.
    Returns:
        Number of rows written.
    Raises:
        DataError: if two examples share an id, a key of `meta` is the name of a field, or the file cannot be written.
    """
    return write_jsonl(path, _rows(path, examples))


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
    row |= {name: getattr(example, name) for name in FIELDS[4:] if name not in PREFERENCE_FIELDS}
    row |= {name: list(getattr(example, name)) for name in PREFERENCE_FIELDS if getattr(example, name)}
    return row | dict(example.meta)


def from_row(row: Mapping[str, Any], *, root: Path = Path(), location: str = "row") -> Example:
    """Convert a JSON object to an Example; `from_row(to_row(example), root=example.root) == example`.

    Args:
        row: JSON object of a manifest; a field that is null counts as absent.
        root: Folder that relative audio paths start from.
        location: Prefix of error messages, for example "train.jsonl:row 3".
    Raises:
        DataError: if a field is missing or mistyped, or the answer does not fit the choices.
    """
    _check_names(row, location)
    values = {key: row[key] for key in FIELDS if row.get(key) is not None}
    for name in ("id", "messages"):
        if name not in values:
            raise DataError(f"{location}: field {name!r} is missing; every row needs one")
    texts = {name: _text(values.get(name, default), name, location) for name, default in TEXT_DEFAULTS.items()}
    if texts["split"] not in SPLITS:
        raise DataError(
            f"{location}: split {texts['split']!r} is none of {', '.join(SPLITS)}{_suggestion(texts['split'], SPLITS)}"
        )
    identifier = _text(values["id"], "id", location)
    if not identifier:
        raise DataError(f"{location}: id is empty; every row needs its own")
    example = Example(
        id=identifier,
        turns=_turns(values["messages"], location),
        answer=_texts(values.get("answer", []), "answer", location),
        choices=_texts(values.get("choices", []), "choices", location, single=False),
        reasoning=None if "reasoning" not in values else _text(values["reasoning"], "reasoning", location),
        difficulty=None if "difficulty" not in values else _text(values["difficulty"], "difficulty", location),
        chosen=_texts(values.get("chosen", []), "chosen", location),
        rejected=_texts(values.get("rejected", []), "rejected", location),
        root=root,
        meta={key: value for key, value in row.items() if key not in FIELD_SET},
        **texts,
    )
    _check_answer(example, location)
    _check_preferences(example, location)
    return example


def from_line(line: str, *, root: Path, location: str, existing_files: set[str] | None = None) -> Example:
    """Parse one line of a manifest.

    Args:
        line: JSON text of the row.
        root: Folder that relative audio paths start from.
        location: Prefix of error messages.
        existing_files: Audio paths that are known to exist. With a set, every audio file of the row must exist, and its
            path is added; with None, files are not checked.
    Raises:
        DataError: for invalid JSON, an invalid row (see `from_row`), or a missing audio file.
    """
    example = from_row(_json(line, location), root=root, location=location)
    if existing_files is not None:
        _check_files(example, existing_files, location)
    return example


def _json(line: str, location: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{location}: not JSON ({error}); a manifest is one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{location}: a JSON {type(row).__name__} where an object is expected; a manifest is one object a line"
        )
    return row


@lru_cache(maxsize=4096)  # the same few unknown fields usually occur in every row
def _suggestion(name: str, valid_names: tuple[str, ...]) -> str:
    """End of an error message that suggests the valid name closest to `name`; empty if none is close."""
    close = difflib.get_close_matches(name.lower(), valid_names, 1, 0.8)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_names(row: Mapping[str, Any], location: str) -> None:
    """Reject unknown fields that are almost the name of a missing field: a row with `anwser` would have no answer."""
    unknown_keys = [key for key, value in row.items() if key not in FIELD_SET and value is not None]
    absent_fields = tuple(name for name in FIELDS if name not in row) if unknown_keys else ()
    for key in unknown_keys:
        if hint := _suggestion(key, absent_fields):
            raise DataError(f"{location}: unknown field {key!r}{hint} (rename either)")


def _text(value: Any, name: str, location: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{location}: {name} is {value!r:.60}, a {type(value).__name__}; write it as a string")
    return value


def _texts(value: Any, name: str, location: str, *, single: bool = True) -> tuple[str, ...]:
    if single and isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise DataError(f"{location}: {name} is {value!r:.60}, a {type(value).__name__}; write a list of strings")
    # a list comprehension is faster than a generator expression, and this runs for millions of rows
    return tuple([_text(item, name, location) for item in value])


def _turns(messages: Any, location: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{location}: messages is {messages!r:.60}; write a list with at least one message")
    return tuple(_turn(message, f"{location}: message {number}") for number, message in enumerate(messages, 1))


def _turn(message: Any, location: str) -> Turn:
    _check_keys(message, ("role", "content"), location)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"{location}: role {role!r} is none of {', '.join(ROLES)}{_suggestion(str(role), ROLES)}")
    if isinstance(content, str):
        return Turn(role, (Text(content),))
    if not isinstance(content, list | tuple):
        raise DataError(f"{location}: content is {content!r:.60}; write a string or a list of parts")
    return Turn(role, tuple(_part(part, f"{location}, part {number}") for number, part in enumerate(content, 1)))


def _part(part: Any, location: str) -> Part:
    _check_keys(part, ("type", "text", "audio"), location)
    kind = part.get("type")
    if kind not in ("text", "audio"):
        raise DataError(f"{location}: type {kind!r} is none of text, audio{_suggestion(str(kind), ('text', 'audio'))}")
    value = part.get(kind)
    if not isinstance(value, str) or (kind == "audio" and not value):
        raise DataError(f"{location}: {kind} is {value!r:.60}; write a {'path' if kind == 'audio' else 'string'}")
    return Text(value) if kind == "text" else Audio(value)


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


def _check_files(example: Example, existing_files: set[str], location: str) -> None:
    for part in (part for turn in example.turns for part in turn.parts if isinstance(part, Audio)):
        if part.path not in existing_files:
            path = example.root / part.path
            if not path.is_file():
                raise DataError(
                    f"{location}: audio file {path} is missing; paths are relative to the manifest's folder"
                )
            existing_files.add(part.path)


def _message(turn: Turn) -> dict[str, Any]:
    if len(turn.parts) == 1 and isinstance(turn.parts[0], Text):
        return {"role": turn.role, "content": turn.parts[0].text}
    return {"role": turn.role, "content": [_part_row(part) for part in turn.parts]}


def _part_row(part: Part) -> dict[str, str]:
    return {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "audio", "audio": part.path}


def _rows(path: Path, examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    ids = set[str]()
    for example in examples:
        if example.id in ids:
            raise DataError(f"{path}: id {example.id!r} occurs twice; ids must differ")
        ids.add(example.id)
        yield to_row(_relative_to(example, path.parent))


def _relative_to(example: Example, root: Path) -> Example:
    """The example with audio paths that start from `root`; absolute paths are not changed."""
    if example.root == root:
        return example

    def relative(part: Part) -> Part:
        if isinstance(part, Text) or Path(part.path).is_absolute():
            return part
        return Audio(Path(os.path.relpath(example.root / part.path, root)).as_posix())

    return replace(
        example, root=root, turns=tuple(Turn(turn.role, tuple(map(relative, turn.parts))) for turn in example.turns)
    )
