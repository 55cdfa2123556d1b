"""Open questions with one short answer into multiple choice: the wrong options are answers to the same question.

After the readers in `data/sources/` whose rows carry `meta.field` (key, tempo, metre, sound ...). Options are drawn as
in `build/options.py`: over all questions of a field every name is a wrong option exactly as often as balance asks, so a
model that does not listen is at chance; questions whose answer is too common for that are left out. Holds all rows.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from earwise.datasets.labels import distractors
from earwise.types import Example

# Ratio of two tempos and how near to it: options that sound alike, and doubles, as which a tempo is often heard.
TEMPO_CLASHES = ((1.0, 0.1), (2.0, 0.04))
_PITCHES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def with_choices(examples: Iterable[Example], n_choices: int, seed: int) -> tuple[list[Example], int]:
    """Give options to every example that has a field, no choices and an answer.

    Args:
        examples: In any order; those that do not qualify pass through unchanged.
        n_choices: Options of a question; fewer where a field has fewer answers.
        seed: Decides wrong options and their order, and which of several true labels is asked for.
    Returns:
        The examples in their order, and how many were left out for the sake of balance.
    """
    rows = list(examples)
    cells = defaultdict[tuple[str, str, str], list[int]](list)
    for index, example in enumerate(rows):
        if example.meta.get("field") and not example.choices and example.task == "open" and example.answer:
            cells[str(example.meta["field"]), example.split, example.language].append(index)
    made: dict[int, Example | None] = {}
    for cell, members in sorted(cells.items()):
        rng = random.Random(f"{seed}:{cell}")
        true = [list(rows[index].meta.get("labels") or rows[index].answer[:1]) for index in members]
        answers = [rng.choice(names) for names in true]
        own = [set(names) - {answer} for names, answer in zip(true, answers, strict=True)]
        drawn = distractors.balanced_distractors(
            answers, n_choices, rng, confusable=clashes(cell[0], set(answers)), also_true=own
        )
        deck = list(range(len(members)))
        rng.shuffle(deck)
        for number, index in enumerate(members):
            made[index] = None
            if number in drawn:
                listed = list(drawn[number])
                listed.insert(deck[number] % (len(listed) + 1), answers[number])
                made[index] = replace(
                    rows[index], choices=tuple(listed), answer=(answers[number],), task="multiple_choice"
                )
    out = [done for index, example in enumerate(rows) if (done := made.get(index, example)) is not None]
    return out, len(rows) - len(out)


def clashes(field: str, names: set[str]) -> Mapping[str, set[str]]:
    """Names that must not stand beside each other: tempos too near (or an octave apart), keys of the same notes."""
    if field == "tempo":
        speeds = {name: float(name.split()[0]) for name in names}
        return {name: {other for other in names - {name} if _near(speeds[name], speeds[other])} for name in names}
    if field == "key":
        notes = {name: _notes(name) for name in names}
        return {name: {other for other in names - {name} if notes[other] == notes[name]} for name in names}
    return {}


def _near(bpm: float, other: float) -> bool:
    high, low = max(bpm, other), min(bpm, other)
    return any(abs(high / low / factor - 1) < tolerance for factor, tolerance in TEMPO_CLASHES)


def _notes(key: str) -> int:
    """Pitch class of the major key with these notes: a minor key shares them with the major key three semitones up.

    >>> _notes("A minor") == _notes("C major"), _notes("C# major") == _notes("Db major")
    (True, True)
    """
    tonic, mode = key.split()
    pitch = _PITCHES[tonic[0]] + tonic.count("#") - tonic[1:].count("b")
    return (pitch + (3 if mode == "minor" else 0)) % 12
