"""From the fields of a published row to an Example."""

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

_SPLITS = (
    ("val", r"val|valid|validation|dev"),  # before train: Clotho's "development" is no "dev"
    ("train", r"train|training|development|balanced_train|unbalanced_train"),
    ("test", r"test|testA|testB|eval|evaluation"),
)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What all rows of one file share."""

    source: str
    licence: str
    root: Path
    """Folder that audio paths start from."""
    split: str


def convert_rows(
    rows: Iterable[tuple[str, Row]], make: Callable[[str, Row], Iterable[Example]], on_skip: OnSkip
) -> Iterator[Example]:
    """The examples of every row; a row for which `make` raises DataError is handed to `bad`."""
    for where, row in rows:
        try:
            made = list(make(where, row))
        except DataError as error:
            on_skip(str(error))
            continue
        yield from made


def text_field(row: Row, key: str, where: str) -> str:
    """The text in a field, with single blanks between its words.

    Raises:
        DataError: if it is missing, empty or no text.
    """
    return " ".join(string_field(row, key, where).split())


def string_field(row: Row, key: str, where: str) -> str:
    """The text in a field as it stands (file names may hold double blanks).

    Raises:
        DataError: if it is missing, empty or no text.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {value!r:.40} where a text is expected")
    return value


def split_from_name(path: Path) -> str:
    """train, val or test from the words in a file's name, then of its folder; train where they say nothing.

    >>> split_of(Path("clotho_captions_development.csv")), split_of(Path("MusicBench_test_A.json"))
    ('train', 'test')
    """
    for part in (path.stem, path.parent.name):
        words = re.split(r"[^a-zA-Z]+", part.lower())
        for split, pattern in _SPLITS:
            if any(re.fullmatch(pattern, word) for word in words):
                return split
    return "train"


def find_audio(root: Path, names: Iterable[str]) -> str:
    """The first of the relative `names` that is a file under `root`; the very first where none is."""
    candidates = list(dict.fromkeys(names))
    return next((each for each in candidates if os.path.isfile(os.path.join(root, each))), candidates[0])  # noqa: PTH113, PTH118 (a stat per row: pathlib costs four times as much)


def build_example(
    origin: SourceInfo, identifier: str, audio: Sequence[str], ask: str, answer: Sequence[str], **fields: Any
) -> Example:
    """One user turn, the clips first, and what is right."""
    turn = Turn("user", (*(Audio(clip) for clip in audio), Text(ask)))
    return Example(
        id=identifier,
        turns=(turn,),
        answer=tuple(answer),
        source=origin.source,
        licence=origin.licence,
        split=origin.split,
        root=origin.root,
        **fields,
    )


def short_hash(*parts: str) -> str:
    """Ten hex digits that name these texts."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:10]


def pick_by_hash(wordings: Sequence[str], key: str) -> str:
    """One of the wordings, always the same for the same key."""
    return wordings[int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % len(wordings)]
