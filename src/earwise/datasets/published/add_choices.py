"""Turns open questions with one short answer into multiple choice; wrong options are answers to the same question.

After the readers in `data/sources/` whose rows have `meta.field` (key, tempo, metre, sound ...). Options are drawn as
in `datasets/labels/distractors.py`: over all questions about a field, every name is a wrong option in proportion to how
often it is the right one, so that a model without audio is at chance. Questions whose answer is too frequent for that
are left out. All rows are held in memory.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from earwise.datasets.labels import distractors
from earwise.types import Example

TEMPO_CLASHES = ((1.0, 0.1), (2.0, 0.04))
"""Ratios of two tempos, each with its relative tolerance, at which they are not options of one question: equal tempos
sound alike, and a tempo is often taken for its double."""
_PITCH_CLASSES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def add_choices(examples: Iterable[Example], n_choices: int, seed: int) -> tuple[list[Example], int]:
    """Add choices to every open example that has a field and an answer.

    Args:
        examples: The examples in any order; those that do not qualify pass through unchanged.
        n_choices: Number of options of a question; fewer where a field has fewer answers.
        seed: Seed of the wrong options, of their order, and of the choice between several true labels.
    Returns:
        The examples in their order, and the number of those that were left out for the sake of balance.
    """
    rows = list(examples)
    cells = defaultdict[tuple[str, str, str], list[int]](list)
    for index, example in enumerate(rows):
        if example.meta.get("field") and not example.choices and example.task == "open" and example.answer:
            cells[str(example.meta["field"]), example.split, example.language].append(index)
    converted: dict[int, Example | None] = {}
    for cell, indices in sorted(cells.items()):
        rng = random.Random(f"{seed}:{cell}")
        true_names = [list(rows[index].meta.get("labels") or rows[index].answer[:1]) for index in indices]
        answers = [rng.choice(names) for names in true_names]
        also_true = [set(names) - {answer} for names, answer in zip(true_names, answers, strict=True)]
        wrong_options = distractors.balanced_distractors(
            answers, n_choices, rng, confusable=confusable_names(cell[0], set(answers)), also_true=also_true
        )
        positions = list(range(len(indices)))
        rng.shuffle(positions)
        for number, index in enumerate(indices):
            converted[index] = None
            if number in wrong_options:
                choices = list(wrong_options[number])
                choices.insert(positions[number] % (len(choices) + 1), answers[number])
                converted[index] = replace(
                    rows[index], choices=tuple(choices), answer=(answers[number],), task="multiple_choice"
                )
    out = [row for index, example in enumerate(rows) if (row := converted.get(index, example)) is not None]
    return out, len(rows) - len(out)


def confusable_names(field: str, names: set[str]) -> Mapping[str, set[str]]:
    """Names that must not be options of the same question: tempos too close or an octave apart, keys of equal notes.

    Args:
        field: Field that the names belong to.
        names: All names of the field.
    Returns:
        Name -> the names that it cannot stand beside; empty for fields without such names.
    """
    if field == "tempo":
        tempos = {name: float(name.split()[0]) for name in names}
        return {
            name: {second for second in names - {name} if _are_confusable(tempos[name], tempos[second])}
            for name in names
        }
    if field == "key":
        scales = {name: _relative_major(name) for name in names}
        return {name: {second for second in names - {name} if scales[second] == scales[name]} for name in names}
    return {}


def _are_confusable(first_bpm: float, second_bpm: float) -> bool:
    """Whether two tempos, in beats per minute, cannot be options of one question."""
    high, low = max(first_bpm, second_bpm), min(first_bpm, second_bpm)
    return any(abs(high / low / ratio - 1) < tolerance for ratio, tolerance in TEMPO_CLASHES)


def _relative_major(key: str) -> int:
    """Pitch class of the major key with the same notes; a minor key shares them with the major key 3 semitones up.

    Example:
        >>> _relative_major("A minor") == _relative_major("C major")
        True
        >>> _relative_major("C# major") == _relative_major("Db major")
        True
    """
    tonic, mode = key.split()
    pitch_class = _PITCH_CLASSES[tonic[0]] + tonic.count("#") - tonic[1:].count("b")
    return (pitch_class + (3 if mode == "minor" else 0)) % 12
