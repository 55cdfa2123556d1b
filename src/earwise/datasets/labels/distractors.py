"""Distractors that give nothing away: chosen so that, given the options alone, each is equally likely to be the answer.

Used by `build/labels.py`. The design: write the answers of all questions of one kind in a column, and beside it k-1
columns that are permutations of it, such that no row holds the same (or a confusable) name twice. Every name is then a
distractor exactly k-1 times as often as it is an answer, and a random such table looks the same whichever column is
called the answer: whatever a deaf model prefers among names, its accuracy is 1/k. (Distractors drawn evenly over
classes, with answers as frequent as the clips of their class, gave a deaf model .50 of four.) No class may be the
answer of more than 1/k of the questions; the surplus is left out.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import product

MIXING_SWAPS = 4  # per cell, after the table is valid
REPAIR_SWEEPS = 40
REPAIR_TRIES = 20
FEW_BROKEN = 60
FORBIDDEN = 10
MIN_KEPT = 0.8  # a table without gaps is preferred to a larger one with gaps if it is not much smaller
# A table too tight to be filled is tried again with the largest classes a little smaller.
SLACKS = (0.0, 0.01, 0.03, 0.1)


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
    best: dict[int, tuple[str, ...]] = {}
    for slack in SLACKS:
        kept = _capped(answers, n_choices, rng, slack)
        table = [[answers[index]] for index in kept]
        for _ in range(n_choices - 1):
            column = [answers[index] for index in kept]
            rng.shuffle(column)
            for row, entry in zip(table, column, strict=True):
                row.append(entry)
        valid = _settle(table, [own[index] for index in kept], clashes, rng)
        drawn = {kept[number]: tuple(table[number][1:]) for number in valid}
        if len(drawn) == len(kept) > MIN_KEPT * len(best):
            return drawn
        best = max(best, drawn, key=len)
        if len(set(answers)) == n_choices:
            break  # every row holds every class: smaller classes would not help
    return best


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


def _capped(answers: Sequence[str], n_choices: int, rng: random.Random, slack: float = 0.0) -> list[int]:
    """Indices of as many questions as possible with no class above (1 - slack)/n_choices of them."""
    counts = Counter(answers)
    cap = max(counts.values())
    while cap > 1 and cap * n_choices > (1 - slack) * sum(min(count, cap) for count in counts.values()):
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

    def faults(row: int, column: int, entry: str) -> int:
        """How many others in the row `entry` cannot stand beside; large if the clip itself forbids it."""
        near = clashes.get(entry, frozenset())
        others = sum(other == entry or other in near for number, other in enumerate(table[row]) if number != column)
        return others + FORBIDDEN * (entry in own[row])

    def swap(row: int, other: int, column: int, allowed: int = 0) -> None:
        """Swap two entries of a column if that changes the number of faults by at most `allowed`."""
        mine, theirs = table[row][column], table[other][column]
        if mine == theirs:
            return
        after = faults(row, column, theirs) + faults(other, column, mine)
        if after == 0 or after - faults(row, column, mine) - faults(other, column, theirs) <= allowed:
            table[row][column], table[other][column] = theirs, mine

    def is_broken(row: int) -> bool:
        return any(faults(row, column, table[row][column]) for column in range(1, width))

    rows, width = len(table), len(table[0]) if table else 0
    broken = [row for row in range(rows) if is_broken(row)]
    for _ in range(REPAIR_SWEEPS):
        if not broken:
            break
        # In a tight table broken rows often mend each other; the last few look at every partner.
        few = len(broken) <= FEW_BROKEN
        for row in broken:
            partners = rng.choices(broken, k=REPAIR_TRIES)
            partners += rng.sample(range(rows), rows if few else min(rows, REPAIR_TRIES))
            for partner, column in product(partners, range(1, width)):
                swap(row, partner, column, allowed=-1)
                if not is_broken(row):
                    break
            else:  # a swap that only moves the fault leads out of a dead end
                swap(row, rng.randrange(rows), rng.randrange(1, width))
        broken = [row for row in range(rows) if is_broken(row)]
    for _ in range(0 if broken else MIXING_SWAPS * rows * (width - 1)):
        swap(rng.randrange(rows), rng.randrange(rows), rng.randrange(1, width))
    return [row for row in range(rows) if not is_broken(row)]
