"""Option letters as the official programs of four benchmarks read them from an output, unchanged.

Each program reads outputs in its own way, and each way has traps: "As an assistant" is A on AIR-Bench, "LOUD!" is D on
MuChoMusic. A published number was made with them, so a comparable number needs them too; they stand beside the scores
of `answers.parse`, never instead of them. Whatever a program leaves out of its denominator (AIR-Bench, MMSU) or decides
by a random draw (VoiceBench) is wrong and counted here.

Sources: OFA-Sys/AIR-Bench@9832476, dingdongwang/MMSU@217d1d3, mulab-mir/muchomusic@d3c9a42,
measured by running them (`tests/golden`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = "ABCD"


def first_or_second_last(output: str) -> str | None:
    """The letter that AIR-Bench (foundation) and MMSU read: the first character if it is A to D, otherwise the last but
    one; None if neither is a letter.

    >>> first_or_second_last("Dogs are barking"), first_or_second_last("The USA."), first_or_second_last("b")
    ('D', 'A', None)
    """
    text = output.replace("\n", "").strip()
    if text[:1] and text[0] in LETTERS:
        return text[0]
    return text[-2] if len(text) > 1 and text[-2] in LETTERS else None


def lettered_choices(row: Mapping[str, Any]) -> list[Any]:
    """The options of a row with `choice_a` to `choice_d`, in order; a missing one is None."""
    return [row.get(f"choice_{letter.lower()}") for letter in LETTERS]


def choice_verdict(choices: Sequence[Any], gold: Any, output: object) -> bool:
    """Whether AIR-Bench's and MMSU's programs count an output as correct: the option of its letter is the gold answer.

    Args:
        choices: The options of A to D, None for a missing one.
        gold: Text of the right option.
        output: The output; anything but text is wrong. An output without a letter, which the official programs leave
            out of the denominator, is wrong too.
    """
    letter = first_or_second_last(output) if isinstance(output, str) else None
    return letter is not None and choices[LETTERS.index(letter)] == gold


def muchomusic_option(output: str, choices: Sequence[str]) -> int:
    """The index of the option that MuChoMusic's program reads, or -1.

    Args:
        output: The output; only what follows "The correct answer is:" is read, where that occurs.
        choices: The options in the order shown.
    """
    text = output.split("The correct answer is:")[-1]
    letters = {character for character in text if character in LETTERS}
    if len(letters) == 1:
        return LETTERS.index(letters.pop())
    return next((index for index, choice in enumerate(choices) if choice.lower() in text.lower()), -1)


def muchomusic_verdict(index: int, gold_index: int) -> str:
    """What MuChoMusic's program makes of an option: `correct`, `wrong`, or `unanswered` for -1 (counted wrong)."""
    if index < 0:
        return "unanswered"
    return "correct" if index == gold_index else "wrong"
