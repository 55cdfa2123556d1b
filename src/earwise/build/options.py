"""Distractors that give nothing away: chosen so that, given the options alone, each is equally likely to be the answer.

Used by `build/labels.py`. The design: write the answers of all questions of one kind in a column, and beside it k-1
columns that are permutations of it, such that no row holds the same (or a confusable) name twice. Every name is then
a distractor exactly k-1 times as often as it is an answer, and a random such table looks the same whichever column is
called the answer: whatever a deaf model prefers among names, its accuracy is 1/k. (Distractors drawn evenly over
classes, with answers as frequent as the clips of their class, gave a deaf model .50 of four.) No class may be the
answer of more than 1/k of the questions; the surplus is left out.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set

MIXING_SWAPS = 4  # per cell, after the table is valid
REPAIR_SWEEPS = 60
REPAIR_TRIES = 80


def choices(
    answers: Sequence[str],
    n_choices: int,
    rng: random.Random,
    *,
    clashes: Mapping[str, Set[str]],
    own: Sequence[Set[str]],
) -> dict[int, tuple[str, ...]]:
    """Distractors for questions whose answers are given.

    Args:
        answers: The right option of each question.
        n_choices: Options per question, the answer included; fewer where there are fewer classes.
        rng: Source of chance.
        clashes: Name -> names that must not stand beside it.
        own: For each question the names that are also true of its clip, so can be no distractors.
    Returns:
        Question's index -> its distractors. Questions that cannot be balanced are absent.
    """
    n_choices = min(n_choices, len(set(answers)))
    if n_choices < 2:
        return {}
    kept = _capped(answers, n_choices, rng)
    table = [[answers[index]] for index in kept]
    for _ in range(n_choices - 1):
        column = [answers[index] for index in kept]
        rng.shuffle(column)
        for row, entry in zip(table, column, strict=True):
            row.append(entry)
    valid = _settle(table, [own[index] for index in kept], clashes, rng)
    return {kept[number]: tuple(table[number][1:]) for number in valid}


def yes_no(
    answers: Sequence[str], rng: random.Random, *, clashes: Mapping[str, Set[str]], own: Sequence[Set[str]]
) -> dict[int, tuple[str, bool]]:
    """Which name to ask for, so that every name is as often right as wrong.

    Args:
        answers: The true name of each clip.
        rng: Source of chance.
        clashes: Name -> names that an honest listener could not tell from it.
        own: For each clip the names that are also true of it.
    Returns:
        Clip's index -> (name asked for, whether it is true). Clips that cannot be balanced are absent.
    """
    if len(set(answers)) < 2:
        return {}
    kept = _capped(answers, 2, rng)
    rng.shuffle(kept)
    kept.sort(key=lambda index: answers[index])  # stable: random inside a class, so alternating halves every class
    true, false = kept[0::2], kept[1::2]
    asked = [answers[index] for index in true[: len(false)]]
    rng.shuffle(asked)
    table = [[answers[index], name] for index, name in zip(false, asked, strict=True)]
    valid = _settle(table, [own[index] for index in false], clashes, rng)
    wrong = {false[number]: (table[number][1], False) for number in valid}
    quota = Counter(name for name, _ in wrong.values())
    right = {}
    for index in true:
        if quota[answers[index]] > 0:
            quota[answers[index]] -= 1
            right[index] = (answers[index], True)
    return wrong | right


def _capped(answers: Sequence[str], n_choices: int, rng: random.Random) -> list[int]:
    """Indices of as many questions as possible with no class above 1/n_choices of them."""
    counts = Counter(answers)
    cap = max(counts.values())
    while cap * n_choices > sum(min(count, cap) for count in counts.values()):
        cap -= 1
    kept = []
    for name in sorted(counts):
        members = [index for index, answer in enumerate(answers) if answer == name]
        kept += rng.sample(members, min(cap, len(members)))
    return sorted(kept)


def _settle(
    table: list[list[str]], own: Sequence[Set[str]], clashes: Mapping[str, Set[str]], rng: random.Random
) -> list[int]:
    """Swap entries within the columns after the first until rows are valid, then mix; returns the valid rows."""

    def bad(row: int, column: int, entry: str) -> bool:
        near = clashes.get(entry, frozenset())
        others = (other for number, other in enumerate(table[row]) if number != column)
        return entry in own[row] or any(other == entry or other in near for other in others)

    def swap_if_valid(row: int, other: int, column: int) -> bool:
        mine, theirs = table[row][column], table[other][column]
        if bad(row, column, theirs) or (bad(other, column, mine) and not bad(other, column, theirs)):
            return False
        table[row][column], table[other][column] = theirs, mine
        return True

    rows, width = len(table), len(table[0]) if table else 0
    broken = list(range(rows))
    for _ in range(REPAIR_SWEEPS):
        broken = [row for row in broken if any(bad(row, column, table[row][column]) for column in range(1, width))]
        if not broken:
            break
        for row in broken:
            for column in range(1, width):
                tries = 0
                while bad(row, column, table[row][column]) and tries < REPAIR_TRIES:
                    swap_if_valid(row, rng.randrange(rows), column)
                    tries += 1
    for _ in range(MIXING_SWAPS * rows * (width - 1) if not broken else 0):
        row, other, column = rng.randrange(rows), rng.randrange(rows), rng.randrange(1, width)
        if row != other and not bad(other, column, table[row][column]):
            swap_if_valid(row, other, column)
    return [row for row in range(rows) if not any(bad(row, column, table[row][column]) for column in range(1, width))]
