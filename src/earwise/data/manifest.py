"""The manifest: JSON lines <-> `Example`, both ways and without loss.

Between the files on disk and everything that trains or measures. One JSON object a line (design: "The manifest row");
messages in the OpenAI and Hugging Face style: `content` is a string, or a list of parts of `type` text or audio. Arrow
gives every part all keys (None where a part has none), so a part is told by its `type`. Unknown fields live in `meta`
and are written back; one that looks like a slip of the pen for a known field is refused. Every refusal names the file
and the row (its line, from 1).
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
KNOWN = frozenset(FIELDS)
PREFERENCES = ("chosen", "rejected")
"""Fields of few rows: written only where they hold something."""
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
        path: JSON lines; relative audio paths start from its folder.
        check_files: Also require that every audio file exists.
    Raises:
        DataError: for an unreadable or empty manifest, and for the first bad row: see `iterate`.
    """
    examples = list(iterate(Path(path), check_files=check_files))
    if not examples:
        raise DataError(f"{path}: holds no rows; write at least one")
    return examples


def iterate(path: Path, *, check_files: bool = False) -> Iterator[Example]:
    """Read a manifest row by row; blank lines are passed over.

    Raises:
        DataError: naming `file:row N`, for bad JSON, a missing or mistyped field, a near miss of a field's name, an
            answer that is none of the choices, equal choices, an id seen before, or (`check_files`) a missing file.
    """
    root, first_row, found = path.parent, dict[str, int](), set[str]()
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path}:row {number}"
                example = from_line(line, root=root, where=where, found=found if check_files else None)
                if example.id in first_row:
                    raise DataError(
                        f"{where}: id {example.id!r} is taken by row {first_row[example.id]}; ids must differ"
                    )
                first_row[example.id] = number
                yield example
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); a manifest is JSON lines"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def select(rows: Sequence[Example], where: Mapping[Any, str]) -> list[Example]:
    """Rows whose fields have these values (keys: `config.Where`)."""
    return [row for row in rows if all(getattr(row, key) == value for key, value in where.items())]


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write a manifest atomically; audio paths become relative to its folder. Returns the number of rows.

    Raises:
        DataError: if two examples share an id, a `meta` key is a field's name, or the disk refuses.
    """
    return write_jsonl(path, _rows(path, examples))


def to_row(example: Example) -> dict[str, Any]:
    """The JSON object of an example, fields in the order of the design, then `meta`.

    Raises:
        DataError: if a key of `meta` is the name of a field.
    """
    taken = [key for key in example.meta if key in FIELDS]
    if taken:
        raise DataError(f"example {example.id!r}: meta holds the field {taken[0]!r}; rename it")
    answer = example.answer[0] if len(example.answer) == 1 else list(example.answer) or None
    row: dict[str, Any] = {"id": example.id, "messages": [_message(turn) for turn in example.turns]}
    row |= {"choices": list(example.choices), "answer": answer}
    row |= {name: getattr(example, name) for name in FIELDS[4:] if name not in PREFERENCES}
    row |= {name: list(getattr(example, name)) for name in PREFERENCES if getattr(example, name)}
    return row | dict(example.meta)


def from_row(row: Mapping[str, Any], *, root: Path = Path(), where: str = "row") -> Example:
    """The example of a JSON object; `from_row(to_row(example), root=example.root) == example`.

    Args:
        row: The object; a field that is null counts as absent.
        root: Folder that relative audio paths start from.
        where: How errors name the row.
    Raises:
        DataError: if a field is missing or mistyped, or the answer does not fit the choices.
    """
    _check_names(row, where)
    given = {key: row[key] for key in FIELDS if row.get(key) is not None}
    for name in ("id", "messages"):
        if name not in given:
            raise DataError(f"{where}: field {name!r} is missing; every row needs one")
    texts = {name: _text(given.get(name, default), name, where) for name, default in TEXT_DEFAULTS.items()}
    if texts["split"] not in SPLITS:
        raise DataError(
            f"{where}: split {texts['split']!r} is none of {', '.join(SPLITS)}{_near(texts['split'], SPLITS)}"
        )
    identifier = _text(given["id"], "id", where)
    if not identifier:
        raise DataError(f"{where}: id is empty; every row needs its own")
    example = Example(
        id=identifier,
        turns=_turns(given["messages"], where),
        answer=_texts(given.get("answer", []), "answer", where),
        choices=_texts(given.get("choices", []), "choices", where, single=False),
        reasoning=None if "reasoning" not in given else _text(given["reasoning"], "reasoning", where),
        difficulty=None if "difficulty" not in given else _text(given["difficulty"], "difficulty", where),
        chosen=_texts(given.get("chosen", []), "chosen", where),
        rejected=_texts(given.get("rejected", []), "rejected", where),
        root=root,
        meta={key: value for key, value in row.items() if key not in KNOWN},
        **texts,
    )
    _check_answer(example, where)
    _check_preferences(example, where)
    return example


def from_line(line: str, *, root: Path, where: str, found: set[str] | None = None) -> Example:
    """The example of one line; with `found`, its audio files must exist, and the paths of those that do are added.

    Raises:
        DataError: as `from_row`, for bad JSON, or a missing file.
    """
    example = from_row(_json(line, where), root=root, where=where)
    if found is not None:
        _check_files(example, found, where)
    return example


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); a manifest is one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: a JSON {type(row).__name__} where an object is expected; a manifest is one object a line"
        )
    return row


@lru_cache(maxsize=4096)  # unknown fields are the same few in every row
def _near(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name.lower(), known, 1, 0.8)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_names(row: Mapping[str, Any], where: str) -> None:
    """A misspelt `answer` kept in `meta` would be a row without an answer: refuse it."""
    unknown = [key for key, value in row.items() if key not in KNOWN and value is not None]
    free = tuple(name for name in FIELDS if name not in row) if unknown else ()
    for key in unknown:
        if hint := _near(key, free):
            raise DataError(f"{where}: unknown field {key!r}{hint} (rename either)")


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {value!r:.60}, a {type(value).__name__}; write it as a string")
    return value


def _texts(value: Any, name: str, where: str, *, single: bool = True) -> tuple[str, ...]:
    if single and isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: {name} is {value!r:.60}, a {type(value).__name__}; write a list of strings")
    return tuple([_text(item, name, where) for item in value])  # a list: rows by the million come through here


def _turns(messages: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{where}: messages is {messages!r:.60}; write a list with at least one message")
    return tuple(_turn(message, f"{where}: message {number}") for number, message in enumerate(messages, 1))


def _turn(message: Any, where: str) -> Turn:
    _check_keys(message, ("role", "content"), where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"{where}: role {role!r} is none of {', '.join(ROLES)}{_near(str(role), ROLES)}")
    if isinstance(content, str):
        return Turn(role, (Text(content),))
    if not isinstance(content, list | tuple):
        raise DataError(f"{where}: content is {content!r:.60}; write a string or a list of parts")
    return Turn(role, tuple(_part(part, f"{where}, part {number}") for number, part in enumerate(content, 1)))


def _part(part: Any, where: str) -> Part:
    _check_keys(part, ("type", "text", "audio"), where)
    kind = part.get("type")
    if kind not in ("text", "audio"):
        raise DataError(f"{where}: type {kind!r} is none of text, audio{_near(str(kind), ('text', 'audio'))}")
    value = part.get(kind)
    if not isinstance(value, str) or (kind == "audio" and not value):
        raise DataError(f"{where}: {kind} is {value!r:.60}; write a {'path' if kind == 'audio' else 'string'}")
    return Text(value) if kind == "text" else Audio(value)


def _check_keys(value: Any, known: tuple[str, ...], where: str) -> None:
    """Nothing below the row's top level has a place in `Example.meta`, so what is not known there would be lost."""
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {value!r:.60} is no object; write one with {', '.join(known)}")
    for key in value:
        if key not in known and value[key] is not None:
            raise DataError(f"{where}: unknown key {key!r}, known are {', '.join(known)}{_near(key, known)}")


def _check_answer(example: Example, where: str) -> None:
    choices = example.choices
    for choice in choices:
        if not choice.strip():
            raise DataError(f"{where}: a choice is empty; give every choice a text")
        if choices.count(choice) > 1:
            raise DataError(f"{where}: choice {choice!r} occurs twice; choices must differ")
    if len(choices) == 1:
        raise DataError(f"{where}: only one choice, {choices[0]!r}; give at least two, or none")
    for answer in example.answer:
        if choices and answer not in choices:
            known = ", ".join(repr(choice) for choice in choices[:8])
            raise DataError(f"{where}: answer {answer!r:.60} is none of the choices {known}{_near(answer, choices)}")
    if choices and len(example.answer) > 1:
        raise DataError(
            f"{where}: {len(example.answer)} answers with choices; one of them is right, or leave out the choices"
        )


def _check_preferences(example: Example, where: str) -> None:
    better = example.chosen or example.answer
    if example.chosen and not example.rejected:
        raise DataError(f"{where}: chosen without rejected; a preference needs both")
    for lost in example.rejected:
        if lost in better:
            raise DataError(
                f"{where}: rejected {lost!r:.60} is {'chosen' if example.chosen else 'the answer'} too; take one out"
            )
        if example.choices and not example.chosen and lost not in example.choices:
            raise DataError(
                f"{where}: rejected {lost!r:.60} is none of the choices; "
                "give `chosen` as well if these are whole replies"
            )


def _check_files(example: Example, found: set[str], where: str) -> None:
    for part in (part for turn in example.turns for part in turn.parts if isinstance(part, Audio)):
        if part.path not in found:
            path = example.root / part.path
            if not path.is_file():
                raise DataError(f"{where}: audio file {path} is missing; paths are relative to the manifest's folder")
            found.add(part.path)


def _message(turn: Turn) -> dict[str, Any]:
    if len(turn.parts) == 1 and isinstance(turn.parts[0], Text):
        return {"role": turn.role, "content": turn.parts[0].text}
    return {"role": turn.role, "content": [_part_row(part) for part in turn.parts]}


def _part_row(part: Part) -> dict[str, str]:
    return {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "audio", "audio": part.path}


def _rows(path: Path, examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    seen = set[str]()
    for example in examples:
        if example.id in seen:
            raise DataError(f"{path}: id {example.id!r} occurs twice; ids must differ")
        seen.add(example.id)
        yield to_row(_moved(example, path.parent))


def _moved(example: Example, root: Path) -> Example:
    """The same example with audio paths that start from `root`; absolute paths stay as they are."""
    if example.root == root:
        return example

    def move(part: Part) -> Part:
        if isinstance(part, Text) or Path(part.path).is_absolute():
            return part
        return Audio(Path(os.path.relpath(example.root / part.path, root)).as_posix())

    return replace(
        example, root=root, turns=tuple(Turn(turn.role, tuple(map(move, turn.parts))) for turn in example.turns)
    )
