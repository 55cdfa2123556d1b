"""Examines the rows of a data set: counts, leaks between splits, duplicates, contradictions, questions for bias.

First part of `checks/check_examples.py`. Rows are added one by one. Of each row only a few hashes, its id and its
answer are kept, so that data sets of millions of rows fit into memory.
"""

import hashlib
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earwise.types import Example

MAX_BIAS_QUESTIONS = 20_000  # per split, those with the lowest hash: a confidence interval of 1 %
MAX_COUNTED_ANSWERS = 100_000  # distinct answers that are counted before rare ones are dropped
LONG_TEXT_WORDS = 8
FREE_TEXT_WORDS = 4  # an answer of this length is a description; a clip can have several that are all true

Key = bytes


@dataclass(slots=True)
class RowStatistics:
    """Counts and findings over the rows that were added so far."""

    rows: Counter[str] = field(default_factory=Counter)
    """Split -> number of rows."""
    tasks: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    clips: dict[Path, tuple[str, str]] = field(default_factory=dict)
    """Audio file -> split and licence of the first row that names it."""
    conflicts: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    deaf: list[str] = field(default_factory=list)
    """Rows that have no clip and do not declare that this is meant."""
    num_text_only: int = 0
    """Number of rows that declare to be text alone."""
    rephrased: list[str] = field(default_factory=list)
    """Rows that repeat a question and its answer with other case, punctuation or articles."""
    texts_across_splits: int = 0
    """Number of long free answers that also occur in another split."""
    _bias_heaps: dict[str, list[tuple[int, int, Example]]] = field(default_factory=lambda: defaultdict(list))
    """Split -> heap of (-hash, -row number, example)."""
    _group_of_file: dict[Key, str] = field(default_factory=dict)
    """Audio file -> its group, from rows about this file alone; a row about several clips names only one group."""
    _unit_splits: dict[Key, set[str]] = field(default_factory=dict)
    """Group, speaker or file -> splits that it occurs in."""
    _leaks: dict[str, set[str]] = field(default_factory=dict)
    """Group, speaker or file that occurs in several splits -> these splits."""
    _questions: dict[Key, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Clips, question and options -> id and answer of the first row with them."""
    _normalised_questions: dict[Key, str] = field(default_factory=dict)
    """Clips, question, options and answer without case, punctuation and articles -> id of the first row with them."""
    _long_answers: dict[Key, str] = field(default_factory=dict)
    """Long free answer -> split of the first row with it."""

    def add(self, example: Example, number: int) -> None:
        """Count a row and compare it with the rows before it; `number` is the row's number."""
        split = example.split
        self.rows[split] += 1
        self.tasks[example.task] += 1
        if example.answer:
            self.answers[example.answer[0]] += 1
            if len(self.answers) > MAX_COUNTED_ANSWERS:
                self.answers = Counter(dict(self.answers.most_common(MAX_COUNTED_ANSWERS // 2)))
        if example.choices and example.answer:
            _push_bounded(self._bias_heaps[split], (-int.from_bytes(_key(example.id)), -number, example))
        paths = example.audio_paths
        self.num_text_only += example.text_only
        if not paths and not example.text_only:
            self.deaf.append(f"row {number + 1} ({example.id}) has none")
        for name in [*_split_units(example), *(f"file {path}" for path in paths)]:
            splits = self._unit_splits.setdefault(_key(name), {split})
            if split not in splits:
                splits.add(split)
                self._leaks[name] = splits
        if len(paths) == 1 and example.group:
            self._group_of_file.setdefault(_key(f"file {paths[0]}"), example.group)
        for path in paths:
            self.clips.setdefault(path, (split, example.licence))
        self._compare_texts(example)

    def leaks(self) -> list[str]:
        """One line for every group, speaker or file that occurs in several splits.

        The group of a clip that is the second one of a row is taken from the rows about that clip alone.
        """
        leaks = dict(self._leaks)
        group_splits: dict[str, set[str]] = {}
        for file_key, group in self._group_of_file.items():
            splits = group_splits.setdefault(group, set(self._unit_splits.get(_key(f"group {group!r}"), ())))
            splits |= self._unit_splits[file_key]
        leaks |= {f"group {group!r}": splits for group, splits in group_splits.items() if len(splits) > 1}
        return [f"{name} is in {' and '.join(sorted(splits))}" for name, splits in sorted(leaks.items())]

    def bias_questions(self) -> dict[str, list[Example]]:
        """Split -> multiple-choice questions in which bias is looked for, in row order."""
        return {
            split: [example for _, _, example in sorted(self._bias_heaps[split], key=lambda entry: -entry[1])]
            for split in sorted(self.rows)
        }

    def _compare_texts(self, example: Example) -> None:
        """Find rows that ask the same question about the same clips, with the same answer or with another."""
        clips = "\x1f".join(map(str, example.clips))
        if not example.choices and example.answer and len(example.answer[0].split()) >= LONG_TEXT_WORDS:
            first_split = self._long_answers.setdefault(_key(_normalise(example.answer[0])), example.split)
            self.texts_across_splits += first_split != example.split
        exact_key = _key(clips, example.question, *sorted(example.choices))
        first_id, first_answer = self._questions.setdefault(exact_key, (example.id, example.answer))
        texts = [_normalise(text) for text in (example.question, *sorted(example.choices), *example.answer)]
        similar_id = self._normalised_questions.setdefault(_key(clips, *texts), example.id)
        if first_id == example.id:  # no earlier row has exactly this question
            if similar_id != example.id:
                self.rephrased.append(f"{similar_id} and {example.id} ask the same in other letters")
        elif first_answer == example.answer:
            self.duplicates.append(f"{first_id} and {example.id} are one question")
        elif _contradict(example, first_answer):
            self.conflicts.append(
                f"{first_id} says {first_answer[0]!r}, {example.id} says {example.answer[0]!r} to one question"
            )


def _split_units(example: Example) -> list[str]:
    """Names of what must not cross splits: the groups of all clips, and the speakers if the row states them."""
    speakers = {*_names(example.meta.get("speaker")), *_names(example.meta.get("speakers"))} - {""}
    return [f"group {group!r}" for group in clip_groups(example)] + [f"speaker {name!r}" for name in sorted(speakers)]


def clip_groups(example: Example) -> list[str]:
    """Groups of all clips of a row, as far as the row states them: `group`, and for several clips `clip_groups`."""
    return sorted({example.group, *_names(example.meta.get("clip_groups"))} - {""})


def _names(value: Any) -> list[str]:
    """The texts of a field that holds a list, a single value or nothing."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)] if value else []


def _push_bounded(heap: list[tuple[int, int, Example]], entry: tuple[int, int, Example]) -> None:
    """Add an entry to a heap that keeps the `MAX_BIAS_QUESTIONS` entries with the lowest hash."""
    if len(heap) < MAX_BIAS_QUESTIONS:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _contradict(example: Example, first_answer: Sequence[str]) -> bool:
    """True if the answers of two rows with the same question exclude each other.

    Free texts do not: many descriptions of one clip can all be true.

    Args:
        example: The later row.
        first_answer: Accepted answers of the earlier row.
    """
    if not first_answer or not example.answer or set(first_answer) & set(example.answer):
        return False
    if example.task == "caption":
        return False
    if example.choices:
        return True
    longest = max(len(answer.split()) for answer in (*example.answer, *first_answer))
    asks_for_description = re.search(r"\b(describe|caption|description)", example.question, re.IGNORECASE)
    return longest < FREE_TEXT_WORDS and not asks_for_description


def _normalise(text: str) -> str:
    """The words of a text without case, punctuation and articles."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _key(*parts: str) -> Key:
    """64-bit hash of several texts."""
    return hashlib.blake2b("\x1e".join(parts).encode(), digest_size=8).digest()
