"""Builds Examples from the fields of published rows: checked fields, split, audio path, stable ids and wordings.

Used by every reader in this folder, together with `row_readers.py`, which reads the published files.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

_SPLIT_PATTERNS = (
    ("val", r"val|valid|validation|dev"),  # checked before train; Clotho's "development" is its training split
    ("train", r"train|training|development|balanced_train|unbalanced_train"),
    ("test", r"test|testA|testB|eval|evaluation"),
)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What all rows of one published file have in common."""

    source: str
    licence: str
    root: Path
    """Folder that audio paths start from."""
    split: str


def convert_rows(
    rows: Iterable[tuple[str, Row]], convert: Callable[[str, Row], Iterable[Example]], on_skip: OnSkip
) -> Iterator[Example]:
    """Convert rows to Examples.

    Args:
        rows: Pairs of location (file and row, for error messages) and row.
        convert: Function that returns the Examples of a row, and raises DataError for a row that cannot be used.
        on_skip: Callback that receives the message of every DataError; the row is skipped.
    """
    for location, row in rows:
        try:
            examples = list(convert(location, row))
        except DataError as error:
            on_skip(str(error))
            continue
        yield from examples


def text_field(row: Row, key: str, location: str) -> str:
    """The text in a field, with every run of white space replaced by one space.

    Raises:
        DataError: if the field is missing, blank or not a string.
    """
    return " ".join(string_field(row, key, location).split())


def string_field(row: Row, key: str, location: str) -> str:
    """The text in a field, unchanged (file names may contain double spaces).

    Raises:
        DataError: if the field is missing, blank or not a string.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{location}: {key} is {value!r:.40} where a text is expected")
    return value


def split_from_name(path: Path) -> str:
    """Split (train, val or test) from the words in a file's name, else in its folder's name, else train.

    >>> split_from_name(Path("clotho_captions_development.csv")), split_from_name(Path("MusicBench_test_A.json"))
    ('train', 'test')
    """
    for name in (path.stem, path.parent.name):
        words = re.split(r"[^a-zA-Z]+", name.lower())
        for split, pattern in _SPLIT_PATTERNS:
            if any(re.fullmatch(pattern, word) for word in words):
                return split
    return "train"


def find_audio(root: Path, names: Iterable[str]) -> str:
    """The first of the relative paths `names` that is a file under `root`; the first of all if none exists."""
    candidates = list(dict.fromkeys(names))
    return next((name for name in candidates if os.path.isfile(os.path.join(root, name))), candidates[0])  # noqa: PTH113, PTH118 (one call per row: pathlib is four times slower)


def build_example(
    info: SourceInfo, identifier: str, clips: Sequence[str], question: str, answer: Sequence[str], **fields: Any
) -> Example:
    """Example with a single user turn: the clips, then the question.

    Args:
        info: Source, licence, split and audio folder of the file.
        identifier: Id of the example.
        clips: Audio paths relative to `info.root`.
        question: Text after the clips.
        answer: Accepted answers, the one to train on first.
        **fields: Further fields of `Example`.
    """
    turn = Turn("user", (*(Audio(clip) for clip in clips), Text(question)))
    return Example(
        id=identifier,
        turns=(turn,),
        answer=tuple(answer),
        source=info.source,
        licence=info.licence,
        split=info.split,
        root=info.root,
        **fields,
    )


def short_hash(*parts: str) -> str:
    """Hash of several texts, 10 hex digits."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:10]


def pick_by_hash(templates: Sequence[str], key: str) -> str:
    """One of the templates, chosen by the hash of `key`, so that the same key always gets the same template."""
    return templates[int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % len(templates)]
