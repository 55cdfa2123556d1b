"""Answers to VoiceBench's subset bbh and to Big Bench Audio: yes or no, valid or invalid, (a) or (b), a number.

VoiceBench's program looks for some 300 sentences that models were seen to write, and draws at random where none occurs.
That list is not repeated here. An answer is read where it stands as a phrase: alone, at the beginning, at the end, or
as the only one anywhere; two different ones are no answer.
"""

import re
from collections.abc import Sequence

_NOT_WORDS = re.compile(r"[^\w()]+")
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip


def short_answer(text: str, answers: Sequence[str]) -> str | None:
    """The one of the possible answers that a text gives, or None.

    >>> short_answer("Yes, the sentence is plausible.", ["yes", "no"]), short_answer("I cannot tell.", ["yes", "no"])
    ('yes', None)
    >>> short_answer("The correct order is option (b).", ["(a)", "(b)"]), short_answer("So: no", ["yes", "no"])
    ('(b)', 'no')

    Args:
        text: The text.
        answers: The possible answers.
    """
    words = plain(text)
    named = [answer for answer in answers if words == plain(answer)]
    for pattern in (r"^{}(?: |$)", r"(?:^| ){}$"):
        named = named or [answer for answer in answers if re.search(pattern.format(re.escape(plain(answer))), words)]
    if not named:
        named = [answer for answer in answers if re.search(rf"(?:^| ){re.escape(plain(answer))}(?: |$)", words)]
    return named[0] if len(set(named)) == 1 else None


def plain(text: str) -> str:
    """A text in lower case, without marks, its number words up to twenty as digits."""
    words = _NOT_WORDS.sub(" ", text.lower()).split()
    return " ".join(str(NUMBERS.index(word)) if word in NUMBERS else word for word in words)


def last_number(text: str) -> str | None:
    """The last whole number of a text, as digits; None if there is none.

    >>> last_number("Two apples and three pears make five fruits."), last_number("none")
    ('5', None)
    """
    numbers = re.findall(r"\b\d+\b", plain(text))
    return numbers[-1] if numbers else None
