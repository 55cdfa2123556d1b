"""Benchmark contamination: finds the questions and videos of benchmarks in training data, by hashes of their texts.

Complements `checks/fingerprint.py`, which finds the audio. The hashes are read from a benchmark's own question file
(MMAU's JSON, MMAR's JSON lines), from a manifest, or from a file of hashes that `write` wrote, which contains no
question in readable form. Two questions are the same if question and options have the same words, whatever the order of
the options, the case and the punctuation. Questions of fewer than `MIN_WORDS` words ("Is it raining?" yes, no) are too
common to be compared. Videos are identified by their 11-character YouTube id.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from earwise.data import manifest
from earwise.data.sources.example_builder import string_field, text_field
from earwise.data.sources.row_readers import json_rows
from earwise.datasets.checks.row_checks import clip_groups
from earwise.errors import DataError
from earwise.files import write_jsonl
from earwise.types import Example

MIN_WORDS = 8
VIDEO_GROUP = "youtube:"
_VIDEO_FILE = re.compile(r"Y?([\w-]{11})_(?:\d\d-\d\d-\d\d|\d+)")


@dataclass(slots=True)
class BenchmarkHashes:
    """Hashes of the questions and videos of benchmarks."""

    questions: dict[str, str] = field(default_factory=dict)
    """Hash of a question -> name of the benchmark item."""
    videos: dict[str, str] = field(default_factory=dict)
    """Hash of a video -> name of the benchmark item."""

    def __len__(self) -> int:
        return len(self.questions) + len(self.videos)

    def match(self, example: Example) -> str | None:
        """One line about what an example has in common with a benchmark; None if it has nothing in common."""
        if name := self.questions.get(question_hash(example.question, example.choices) or ""):
            return f"{example.id} has the question and options of {name}"
        for group in clip_groups(example):
            if group.startswith(VIDEO_GROUP) and (name := self.videos.get(_hash(group))):
                return f"{example.id} is about the video of {name}"
        return None


def question_hash(question: str, choices: Sequence[str]) -> str | None:
    """Hash of a question and its options, 16 hex digits; None if the question is too short to be compared.

    >>> question_hash("Is it raining?", ("yes", "no")) is None
    True
    """
    texts = [" ".join(re.findall(r"\w+", text.casefold())) for text in (question, *sorted(choices, key=str.casefold))]
    return None if sum(len(text.split()) for text in texts) < MIN_WORDS else _hash("\x1e".join(texts))


def read(path: Path) -> BenchmarkHashes:
    """Hashes of the questions and videos in a file.

    Args:
        path: JSON list or JSON lines with `question` and `choices` (and `id`, `audio_id` or `audio_path`), a manifest,
            or a file that `write` wrote.
    Returns:
        The hashes; none for a file of short questions that names no videos.
    Raises:
        DataError: if the file has none of these formats.
    """
    hashes = BenchmarkHashes()
    for kind, value, name in _read_hashes(path):
        (hashes.questions if kind == "question" else hashes.videos).setdefault(value, name)
    return hashes


def merge(benchmarks: Iterable[BenchmarkHashes]) -> BenchmarkHashes:
    """The hashes of several benchmarks in one object."""
    merged = BenchmarkHashes()
    for hashes in benchmarks:
        merged.questions |= hashes.questions
        merged.videos |= hashes.videos
    return merged


def write(path: Path, hashes: BenchmarkHashes) -> int:
    """Write hashes as JSON lines; returns their number."""
    kinds = (("question", hashes.questions), ("video", hashes.videos))
    return write_jsonl(
        path,
        ({"asked": kind, "hash": value, "name": name} for kind, names in kinds for value, name in names.items()),
    )


def _read_hashes(path: Path) -> Iterator[tuple[str, str, str]]:
    """Kind (question or video), hash and item name of everything in a file."""
    skipped: list[str] = []
    for location, row in json_rows(path, (), skipped.append):
        if "messages" in row:
            example = manifest.from_row(row, root=path.parent, location=location)
            groups = clip_groups(example)
            yield from _item_hashes(f"{path.name} {example.id}", example.question, example.choices, groups)
        elif "asked" in row:
            kind, value, name = (string_field(row, key, location) for key in ("asked", "hash", "name"))
            yield kind, value, name
        else:
            choices = row.get("choices")
            choice_texts = [str(choice) for choice in choices] if isinstance(choices, list) else []
            clip = PurePosixPath(str(row.get("audio_path") or row.get("audio_id") or "")).stem
            video = _VIDEO_FILE.match(clip)
            groups = [f"{VIDEO_GROUP}{video[1]}"] if video else []
            question = text_field(row, "question", location)
            yield from _item_hashes(f"{path.name} {row.get('id')}", question, choice_texts, groups)
    if skipped:
        raise DataError(f"{skipped[0]} ({len(skipped)} such rows); is this the published file?")


def _item_hashes(
    name: str, question: str, choices: Sequence[str], groups: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Kind, hash and name of the question and the videos of one item."""
    if value := question_hash(question, choices):
        yield "question", value, name
    for group in groups:
        if group.startswith(VIDEO_GROUP):
            yield "video", _hash(group), name


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
