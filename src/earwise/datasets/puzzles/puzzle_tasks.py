"""Plans puzzles: which pieces of which recordings are played, in what order and how, and what is asked. Pure functions.

`earwise build puzzles`. A puzzle needs no label: its answer is known because the sound was made that way. Pieces are
cut from the part of a recording that is not silent and brought to the same level, so that only what is asked for
differs. Answers and their positions among the options are equally frequent in each task and split, so that whoever
hears nothing is right as often as by chance.

Source of the idea: Audio-R1, which trains audio-language models by reinforcement learning on self-supervised tasks
(model cards; its list of tasks is not known to us). The tasks here are ours.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from earwise.errors import ConfigError

VERSION = 1  # version of the rendering, part of the names of the rendered files
HALF_S = (0.8, 2.5)
"""Shortest and longest half of a recording that is played in two halves, in seconds."""
PIECE_S = (0.3, 1.5)
"""Shortest and longest piece of other tasks, in seconds."""
GAP_S = 0.4
LEVEL_DB = -24.0
"""Level of every piece, unless the question is about level: root mean square in dB of full scale."""
LOUDER_DB = (8.0, 14.0)
LONGER_RATIO = (1.8, 3.0)
HALVES = ("the first half", "the second half")
SOUNDS = ("the first sound", "the second sound")
SAME = ("yes", "no")
COUNTS = ("one", "two", "three", "four", "five")
NUM_COUNT_CHOICES = 4
ORDERS = tuple("-".join(str(number + 1) for number in order) for order in itertools.permutations(range(3)))
"""The orders in which three pieces can be played, as texts: `2-3-1` plays the second piece first."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "reversed": (
        "One half of this recording is played backwards. Which half?",
        "Which half of the sound runs backwards in time?",
    ),
    "louder": ("Which half of the recording is louder?", "In which half is the sound louder?"),
    "longer": ("Two sounds follow each other. Which one is longer?", "Which of the two sounds lasts longer?"),
    "count": ("How many times is the sound played?", "The same sound is repeated. How often do you hear it?"),
    "same": (
        "You hear two sounds. Are they the same recording?",
        "Is the second sound an exact repetition of the first?",
    ),
    "match": (
        "You hear three sounds. Which of the first two is the third one a repetition of?",
        "The last sound was already played. Was it the first or the second sound?",
    ),
    "jigsaw": (
        "A recording was cut into three pieces, 1, 2 and 3 in their original order, and the pieces were mixed. "
        "In which order do you hear them?",
        "Three consecutive pieces of a recording, numbered 1 to 3 as they were recorded, are played in some order. "
        "Which order?",
    ),
}
"""Task -> wordings of its question (ours)."""
TASKS = tuple(QUESTIONS)


@dataclass(frozen=True, slots=True)
class Recording:
    """The part of an unlabelled recording that is not silent.

    Attributes:
        path: Its file, relative to the collection.
        start_s: Where the sound begins in the file, in seconds.
        end_s: Where it ends.
        split: Split that everything made of this recording belongs to.
    """

    path: str
    start_s: float
    end_s: float
    split: str

    @property
    def length_s(self) -> float:
        """Length of the sound, in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a recording as it is played.

    Attributes:
        path: File of the recording.
        start_s: Where the piece begins in the file, in seconds.
        length_s: Its length.
        level_db: Level at which it is played, root mean square in dB of full scale.
        is_reversed: Whether it is played backwards.
        gap_s: Silence after it, in seconds.
    """

    path: str
    start_s: float
    length_s: float
    level_db: float = LEVEL_DB
    is_reversed: bool = False
    gap_s: float = GAP_S


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A sound to compose, and the question about it.

    Attributes:
        task: One of `TASKS`.
        pieces: What is played, in order.
        question: The question.
        answer: The right option.
        choices: All options.
        split: Split of its recordings.
    """

    task: str
    pieces: tuple[Piece, ...]
    question: str
    answer: str
    choices: tuple[str, ...]
    split: str

    @property
    def name(self) -> str:
        """File name, without ending, of the composed sound: task and a hash of everything that is audible."""
        audible = "\x1f".join(map(str, self.pieces))
        return f"{self.task}-{hashlib.sha256(f'{VERSION}:{audible}'.encode()).hexdigest()[:16]}"


Made = tuple[tuple[Piece, ...], str, tuple[str, ...]]
"""Pieces, answer and options of a puzzle."""
Maker = Callable[[Recording, Recording, int, random.Random], Made | None]
"""Makes a puzzle from a recording and another one; the number decides the answer. None if a recording is too short."""


def plan_puzzles(
    recordings: Sequence[Recording], *, seed: int = 0, tasks: Sequence[str] = TASKS, limit: int | None = None
) -> list[Puzzle]:
    """Plan the puzzles: for each task and split one per recording that is long enough.

    Args:
        recordings: The recordings.
        seed: Seed of all random choices.
        tasks: Tasks of `TASKS`.
        limit: Largest number of puzzles of each task and split; None for no limit.
    Raises:
        ConfigError: for an unknown task.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ConfigError(f"task {unknown[0]!r} is none of {', '.join(TASKS)}")
    puzzles: list[Puzzle] = []
    for split in sorted({recording.split for recording in recordings}):
        members = sorted((item for item in recordings if item.split == split), key=lambda item: item.path)
        for task in tasks:
            puzzles += _plan_task(task, members, random.Random(f"{seed}:{task}:{split}"), limit)
    return puzzles


def _plan_task(task: str, members: Sequence[Recording], rng: random.Random, limit: int | None) -> list[Puzzle]:
    """Puzzles of one task; the answers take turns, so each is equally frequent."""
    puzzles: list[Puzzle] = []
    for recording in rng.sample(members, len(members)):
        if limit is not None and len(puzzles) >= limit:
            break
        others = [other for other in rng.sample(members, min(4, len(members))) if other.path != recording.path]
        made = MAKERS[task](recording, others[0] if others else recording, len(puzzles), rng)
        if made is None:
            continue
        pieces, answer, choices = made
        question = QUESTIONS[task][rng.randrange(len(QUESTIONS[task]))]
        puzzles.append(Puzzle(task, pieces, question, answer, choices, recording.split))
    return puzzles


def _window(
    recording: Recording, shortest_s: float, longest_s: float, rng: random.Random
) -> tuple[float, float] | None:
    """Begin and length of a random part of a recording; None if it is too short."""
    if recording.length_s < shortest_s:
        return None
    length_s = round(min(recording.length_s, rng.uniform(shortest_s, longest_s)), 3)
    return round(recording.start_s + rng.uniform(0, recording.length_s - length_s), 3), length_s


def _ordered(choices: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The options in one order or the other, so that no place is right more often."""
    return choices if number % 4 < 2 else choices[::-1]


def _halves(recording: Recording, rng: random.Random) -> list[Piece] | None:
    """Two halves of a part of a recording, without a gap between them."""
    window = _window(recording, 2 * HALF_S[0], 2 * HALF_S[1], rng)
    if window is None:
        return None
    start_s, length_s = window[0], window[1] / 2
    return [
        Piece(recording.path, round(start_s + number * length_s, 4), round(length_s, 4), gap_s=0.0) for number in (0, 1)
    ]


def _reversed(recording: Recording, other: Recording, number: int, rng: random.Random) -> Made | None:
    halves = _halves(recording, rng)
    if halves is None:
        return None
    place = number % 2
    pieces = tuple(
        Piece(half.path, half.start_s, half.length_s, is_reversed=index == place, gap_s=0.0)
        for index, half in enumerate(halves)
    )
    return pieces, HALVES[place], _ordered(HALVES, number)


def _louder(recording: Recording, other: Recording, number: int, rng: random.Random) -> Made | None:
    halves = _halves(recording, rng)
    if halves is None:
        return None
    place = number % 2
    quieter_db = LEVEL_DB - round(rng.uniform(*LOUDER_DB), 2)
    pieces = tuple(
        Piece(half.path, half.start_s, half.length_s, LEVEL_DB if index == place else quieter_db, gap_s=0.0)
        for index, half in enumerate(halves)
    )
    return pieces, HALVES[place], _ordered(HALVES, number)


def _longer(recording: Recording, other: Recording, number: int, rng: random.Random) -> Made | None:
    ratio = rng.uniform(*LONGER_RATIO)
    long_window = _window(recording, PIECE_S[0] * ratio, PIECE_S[1] * ratio, rng)
    short_window = _window(other, PIECE_S[0], PIECE_S[1], rng)
    if long_window is None or short_window is None:
        return None
    short_s = min(short_window[1], round(long_window[1] / ratio, 3))
    pieces = [Piece(recording.path, *long_window), Piece(other.path, short_window[0], short_s)]
    place = number % 2
    return tuple(pieces[::-1] if place else pieces), SOUNDS[place], _ordered(SOUNDS, number)


def _count(recording: Recording, other: Recording, number: int, rng: random.Random) -> Made | None:
    window = _window(recording, PIECE_S[0], 0.8, rng)
    if window is None:
        return None
    answer = COUNTS[number % len(COUNTS)]
    pieces = (Piece(recording.path, *window),) * (COUNTS.index(answer) + 1)
    # one of the windows of four neighbouring counts that hold the answer, in ascending order
    first = rng.choice([start for start in (0, 1) if answer in COUNTS[start : start + NUM_COUNT_CHOICES]])
    return pieces, answer, COUNTS[first : first + NUM_COUNT_CHOICES]


def _same(recording: Recording, other: Recording, number: int, rng: random.Random) -> Made | None:
    window = _window(recording, PIECE_S[0], PIECE_S[1], rng)
    other_window = _window(other, PIECE_S[0], PIECE_S[1], rng)
    if window is None or other_window is None or other.path == recording.path:
        return None
    length_s = min(window[1], other_window[1])  # otherwise their lengths tell
    first = Piece(recording.path, window[0], length_s)
    is_same = number % 2 == 0
    second = first if is_same else Piece(other.path, other_window[0], length_s)
    return (first, second), SAME[not is_same], _ordered(SAME, number)


def _match(recording: Recording, other: Recording, number: int, rng: random.Random) -> Made | None:
    window = _window(recording, PIECE_S[0], PIECE_S[1], rng)
    other_window = _window(other, PIECE_S[0], PIECE_S[1], rng)
    if window is None or other_window is None or other.path == recording.path:
        return None
    length_s = min(window[1], other_window[1])
    target, foil = Piece(recording.path, window[0], length_s), Piece(other.path, other_window[0], length_s)
    place = number % 2
    pair = (foil, target) if place else (target, foil)
    return (*pair, target), SOUNDS[place], _ordered(SOUNDS, number)


def _jigsaw(recording: Recording, other: Recording, number: int, rng: random.Random) -> Made | None:
    window = _window(recording, 3 * 0.5, 3 * PIECE_S[1], rng)
    if window is None:
        return None
    length_s = round(window[1] / 3, 4)
    parts = [Piece(recording.path, round(window[0] + place * length_s, 4), length_s) for place in range(3)]
    answer = ORDERS[number % len(ORDERS)]
    pieces = tuple(parts[int(digit) - 1] for digit in answer.split("-"))
    choices = [answer, *rng.sample([order for order in ORDERS if order != answer], 3)]
    rng.shuffle(choices)
    return pieces, answer, tuple(choices)


MAKERS: Mapping[str, Maker] = {
    "reversed": _reversed, "louder": _louder, "longer": _longer, "count": _count, "same": _same, "match": _match,
    "jigsaw": _jigsaw,
}  # fmt: skip
"""Task -> what makes its puzzles."""
