"""Balanced distractors: given the options alone, each option is equally likely to be the answer.

Used by every builder of multiple-choice questions from labels. Method (ours): write the answers of all questions of one
kind into a column, and beside it k - 1 columns that are permutations of it, such that no row holds a name twice or two
names that could be confused. Every name is then a distractor exactly k - 1 times as often as it is an answer, and the
distribution of names is the same in every column. Whichever names a model without audio input prefers, its accuracy is
1/k. (With distractors drawn evenly over the classes, and answers as frequent as the clips of their class, such a model
reached .50 on four options.) No class may be the answer of more than 1/k of the questions; surplus questions are left
out.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import product

MIXING_SWAPS = 4  # random swaps per cell after the table is valid
REPAIR_SWEEPS = 40
REPAIR_TRIES = 20
FEW_INVALID_ROWS = 60
FORBIDDEN_PENALTY = 10
MIN_SIZE_RATIO = 0.8  # a table without gaps is preferred to a table with gaps that is at most 1/0.8 as large
# If a table cannot be filled, it is tried again with the largest classes made smaller by these shares.
SLACKS = (0.0, 0.01, 0.03, 0.1)


def balanced_distractors(
    answers: Sequence[str],
    n_choices: int,
    rng: random.Random,
    *,
    confusable: Mapping[str, Set[str]],
    also_true: Sequence[Set[str]],
) -> dict[int, tuple[str, ...]]:
    """Choose the distractors of a set of multiple-choice questions whose answers are given.

    Args:
        answers: The right option of each question.
        n_choices: Number of options per question, the answer included; fewer if there are fewer classes.
        rng: Source of randomness.
        confusable: Name -> names that must not be options of the same question.
        also_true: For each question the further names that are true of its clip and cannot be distractors.
    Returns:
        Index of a question -> its distractors. Questions that cannot be balanced are absent.
    """
    n_choices = min(n_choices, len(set(answers)))
    if n_choices < 2:
        return {}
    best: dict[int, tuple[str, ...]] = {}
    for slack in SLACKS:
        indices = _capped_indices(answers, n_choices, rng, slack)
        table = [[answers[index]] for index in indices]
        for _ in range(n_choices - 1):
            column = [answers[index] for index in indices]
            rng.shuffle(column)
            for row, entry in zip(table, column, strict=True):
                row.append(entry)
        valid_rows = _repair(table, [also_true[index] for index in indices], confusable, rng)
        distractors = {indices[row]: tuple(table[row][1:]) for row in valid_rows}
        if len(distractors) == len(indices) > MIN_SIZE_RATIO * len(best):
            return distractors
        best = max(best, distractors, key=len)
        if len(set(answers)) == n_choices:
            break  # every row holds every class: smaller classes would not help
    return best


def balanced_yes_no(
    answers: Sequence[str], rng: random.Random, *, confusable: Mapping[str, Set[str]], also_true: Sequence[Set[str]]
) -> dict[int, tuple[str, bool]]:
    """Choose the name that each yes/no question asks for, so that every name is as often right as wrong.

    Args:
        answers: The true name of each clip.
        rng: Source of randomness.
        confusable: Name -> names that a listener could confuse with it.
        also_true: For each clip the further names that are true of it.
    Returns:
        Index of a clip -> (name that is asked for, whether it is true). Clips that cannot be balanced are absent.
    """
    if len(set(answers)) < 2:
        return {}
    indices = _capped_indices(answers, 2, rng)
    rng.shuffle(indices)
    indices.sort(key=lambda index: answers[index])  # stable: random inside a class, so alternating halves every class
    true_half, false_half = indices[0::2], indices[1::2]
    names = [answers[index] for index in true_half[: len(false_half)]]
    rng.shuffle(names)
    table = [[answers[index], name] for index, name in zip(false_half, names, strict=True)]
    valid_rows = _repair(table, [also_true[index] for index in false_half], confusable, rng)
    false_questions = {false_half[row]: (table[row][1], False) for row in valid_rows}
    quota = Counter(name for name, _ in false_questions.values())
    true_questions = {}
    for index in true_half:
        if quota[answers[index]] > 0:
            quota[answers[index]] -= 1
            true_questions[index] = (answers[index], True)
    return false_questions | true_questions


def _capped_indices(answers: Sequence[str], n_choices: int, rng: random.Random, slack: float = 0.0) -> list[int]:
    """Indices of as many questions as possible with no class above (1 - slack)/n_choices of them."""
    counts = Counter(answers)
    cap = max(counts.values())
    while cap > 1 and cap * n_choices > (1 - slack) * sum(min(count, cap) for count in counts.values()):
        cap -= 1
    indices = []
    for name in sorted(counts):
        members = [index for index, answer in enumerate(answers) if answer == name]
        indices += rng.sample(members, min(cap, len(members)))
    return sorted(indices)


def _repair(
    table: list[list[str]], also_true: Sequence[Set[str]], confusable: Mapping[str, Set[str]], rng: random.Random
) -> list[int]:
    """Swap entries within the columns after the first until the rows are valid, then mix the columns.

    Args:
        table: One row of names per question, the answer first; changed in place.
        also_true: For each row the names that must not be in it besides the answer.
        confusable: Name -> names that must not be in the same row.
        rng: Source of randomness.
    Returns:
        Numbers of the rows that are valid.
    """

    def conflicts(row: int, column: int, entry: str) -> int:
        """Number of other names in the row that conflict with `entry`; large if `entry` is true of the row's clip."""
        near = confusable.get(entry, frozenset())
        conflicting = sum(name == entry or name in near for number, name in enumerate(table[row]) if number != column)
        return conflicting + FORBIDDEN_PENALTY * (entry in also_true[row])

    def swap(row: int, partner: int, column: int, allowed: int = 0) -> None:
        """Swap the entries of two rows in a column if that changes the number of conflicts by at most `allowed`."""
        entry, partner_entry = table[row][column], table[partner][column]
        if entry == partner_entry:
            return
        after = conflicts(row, column, partner_entry) + conflicts(partner, column, entry)
        if after == 0 or after - conflicts(row, column, entry) - conflicts(partner, column, partner_entry) <= allowed:
            table[row][column], table[partner][column] = partner_entry, entry

    def is_invalid(row: int) -> bool:
        return any(conflicts(row, column, table[row][column]) for column in range(1, width))

    rows, width = len(table), len(table[0]) if table else 0
    invalid = [row for row in range(rows) if is_invalid(row)]
    for _ in range(REPAIR_SWEEPS):
        if not invalid:
            break
        # In a tight table invalid rows can often be repaired with each other; the last few look at every partner.
        few = len(invalid) <= FEW_INVALID_ROWS
        for row in invalid:
            partners = rng.choices(invalid, k=REPAIR_TRIES)
            partners += rng.sample(range(rows), rows if few else min(rows, REPAIR_TRIES))
            for partner, column in product(partners, range(1, width)):
                swap(row, partner, column, allowed=-1)
                if not is_invalid(row):
                    break
            else:  # a swap that only moves the conflict to another row leads out of a dead end
                swap(row, rng.randrange(rows), rng.randrange(1, width))
        invalid = [row for row in range(rows) if is_invalid(row)]
    for _ in range(0 if invalid else MIXING_SWAPS * rows * (width - 1)):
        swap(rng.randrange(rows), rng.randrange(rows), rng.randrange(1, width))
    return [row for row in range(rows) if not is_invalid(row)]
