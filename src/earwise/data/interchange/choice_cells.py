"""Options and answers as people type them: several options in one cell, letters before them, a letter as the answer.

Used for tables (CSV, Parquet). What can be read in two ways is refused, never guessed.
"""

import ast
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from earwise.errors import DataError

_LETTER_PREFIX = re.compile(r"\s*[(\[]?([A-Za-z])(?:[)\].:、]|\s*-)\s*(?=\S)")
_ANSWER_LETTER = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:]?\s*")
_INLINE_LETTERS = re.compile(r"(?:^|(?<=[\s,;|]))[(\[]?([A-Za-z])[)\].:]\s*(?=\S)")
_SEPARATORS = ("\n", "|", ";")


def split_choices(value: Any, location: str) -> tuple[str, ...]:
    """Option texts of a value: a list, an object with letters as keys, or a text that holds several options.

    A text may be a JSON or Python list or object, options with letters (`A) dog B) cat`), or options separated by line
    breaks, `|`, `;`, or, if nothing else separates them, commas. Letters before the options (A, B, C ... in order) are
    taken off.

    Raises:
        DataError: for a value that is no list of texts.

    >>> split_choices("A) dog  B) cat, small", "row 1"), split_choices("['dog', 'cat']", "row 2")
    (('dog', 'cat, small'), ('dog', 'cat'))
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str):
        literal = _literal(value)
        value = _split_text(value) if literal is None else literal
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | int | float) for item in value):
        raise DataError(f"{location}: choices is {value!r:.60}; write a list of texts")
    return strip_letters([str(item).strip() for item in value])


def strip_letters(choices: Sequence[str]) -> tuple[str, ...]:
    """The options without the letters A, B, C ... before them, if all have theirs in order; otherwise unchanged."""
    matches = [_LETTER_PREFIX.match(choice) for choice in choices]
    letters = "".join(match[1].upper() for match in matches if match is not None)
    if len(choices) > 1 and letters == string.ascii_uppercase[: len(choices)]:
        return tuple(
            choice[match.end() :].strip() for choice, match in zip(choices, matches, strict=True) if match is not None
        )
    return tuple(choices)


def resolve_answer(answer: str, choices: Sequence[str], location: str) -> str:
    """The option that an answer names by its text or by its letter.

    Args:
        answer: Text of an option, its letter (`B`, `(b)`, `B.`), or both (`B) cat`).
        choices: Option texts without letters.
        location: Prefix of error messages.
    Raises:
        DataError: if the answer names none of the options; a number is not taken for a position, which may count from 0
            or from 1.
    """
    text = answer.strip()
    if text in choices:
        return text
    folded = [choice.casefold() for choice in choices]
    if folded.count(text.casefold()) == 1:
        return choices[folded.index(text.casefold())]
    if (match := _ANSWER_LETTER.fullmatch(text)) and (position := ord(match[1].upper()) - ord("A")) < len(choices):
        return choices[position]
    if match := _LETTER_PREFIX.match(text):
        position = ord(match[1].upper()) - ord("A")
        if position < len(choices) and text[match.end() :].strip().casefold() == folded[position]:
            return choices[position]
    listed = ", ".join(repr(choice) for choice in choices[:8])
    hint = "; write the option's text or letter, a number may count from 0 or 1" if text.isdecimal() else ""
    raise DataError(f"{location}: answer {answer!r:.60} is none of the choices {listed}{hint}")


def _literal(text: str) -> Any:
    """The list or object that a text spells in JSON or as Python prints it; None for any other text."""
    if text.strip()[:1] not in ("[", "{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, list | tuple | dict) else None


def _split_text(text: str) -> list[str]:
    """The options that one text holds."""
    marks = list(_INLINE_LETTERS.finditer(text))
    letters = "".join(mark[1].upper() for mark in marks)
    if len(marks) > 1 and marks[0].start() == 0 and letters == string.ascii_uppercase[: len(marks)]:
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        return [text[mark.end() : end].strip().rstrip(",;|").strip() for mark, end in zip(marks, ends, strict=True)]
    separator = next((separator for separator in _SEPARATORS if separator in text), ",")
    return [option for part in text.split(separator) if (option := part.strip())]
