"""What benchmarks ask, as hashes: their questions and videos must not be in training data, whoever has their sounds.

Beside `build/fingerprint.py`, which knows the sounds themselves. Read from a benchmark's own question file (MMAU's
JSON, MMAR's JSON lines), from a manifest, or from a file of hashes that `write` made, in which no question can be read.
Two questions are one if question and options have the same words, whatever the options' order, case and marks; those of
fewer than `FEWEST_WORDS` words ("Is it raining?" yes, no) are everyone's and are not compared. A video is told by its
11 letters.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from earwise.data import manifest
from earwise.data.sources import example_builder, row_readers
from earwise.errors import DataError
from earwise.files import write_jsonl
from earwise.types import Example

FEWEST_WORDS = 8
VIDEO = "youtube:"
_VIDEO = re.compile(r"Y?([\w-]{11})_(?:\d\d-\d\d-\d\d|\d+)")


@dataclass(slots=True)
class Asked:
    """Hashes -> where they are from."""

    questions: dict[str, str] = field(default_factory=dict)
    videos: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.questions) + len(self.videos)

    def found(self, example: Example) -> str | None:
        """What an example shares with a benchmark, one line; None for nothing."""
        if name := self.questions.get(question_hash(example.question, example.choices) or ""):
            return f"{example.id} asks in the words and options of {name}"
        if example.group.startswith(VIDEO) and (name := self.videos.get(_hash(example.group))):
            return f"{example.id} is about the video of {name}"
        return None


def question_hash(question: str, choices: Sequence[str]) -> str | None:
    """Names a question with its options, 16 hex digits; None for one too short to be anyone's.

    >>> question_hash("Is it raining?", ("yes", "no")) is None
    True
    """
    words = [" ".join(re.findall(r"\w+", text.casefold())) for text in (question, *sorted(choices, key=str.casefold))]
    return None if sum(len(text.split()) for text in words) < FEWEST_WORDS else _hash("\x1e".join(words))


def read(path: Path) -> Asked:
    """What a benchmark asks; nothing for a manifest of short questions about nobody's videos.

    Args:
        path: JSON list or JSON lines of `question` and `choices` (beside `id`, and `audio_id` or `audio_path`), a
            manifest, or what `write` wrote.
    Raises:
        DataError: if it is none of these.
    """
    asked = Asked()
    for kind, value, name in _rows(path):
        (asked.questions if kind == "question" else asked.videos).setdefault(value, name)
    return asked


def joined(many: Iterable[Asked]) -> Asked:
    """All of them as one."""
    asked = Asked()
    for one in many:
        asked.questions |= one.questions
        asked.videos |= one.videos
    return asked


def write(path: Path, asked: Asked) -> int:
    """Write hashes without texts, JSON lines; returns their number."""
    kinds = (("question", asked.questions), ("video", asked.videos))
    return write_jsonl(
        path, ({"asked": kind, "hash": value, "name": name} for kind, found in kinds for value, name in found.items())
    )


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, hash and name of everything in a file."""
    bad: list[str] = []
    for where, row in row_readers.json_rows(path, (), bad.append):
        if "asked" in row:
            yield (
                example_builder.string_field(row, "asked", where),
                example_builder.string_field(row, "hash", where),
                example_builder.string_field(row, "name", where),
            )
        elif "messages" in row:
            example = manifest.from_row(row, root=path.parent, location=where)
            yield from _hashes(f"{path.name} {example.id}", example.question, example.choices, example.group)
        else:
            choices = row.get("choices")
            listed = [str(one) for one in choices] if isinstance(choices, list) else []
            sound = PurePosixPath(str(row.get("audio_path") or row.get("audio_id") or "")).stem
            video = _VIDEO.match(sound)
            group = f"{VIDEO}{video[1]}" if video else ""
            yield from _hashes(
                f"{path.name} {row.get('id')}", example_builder.text_field(row, "question", where), listed, group
            )
    if bad:
        raise DataError(f"{bad[0]} ({len(bad)} such rows); is this the published file?")


def _hashes(name: str, question: str, choices: Sequence[str], group: str) -> Iterator[tuple[str, str, str]]:
    if known := question_hash(question, choices):
        yield "question", known, name
    if group.startswith(VIDEO):
        yield "video", _hash(group), name


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
