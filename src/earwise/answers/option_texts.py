"""When two texts are the same to a reader, and which letter an option has.

Used by the parser of this package, which finds the option that a completion names. No torch.
"""

import re
import unicodedata

# Quotes, brackets, sentence marks and markdown. Not "#", "+", "-", "$" and "%", which change the meaning of an answer.
OUTER_PUNCTUATION = ".,;:!?\"'`*_()[]{}…“”‘’«»。，、！？；：「」（）"
_QUOTES = str.maketrans("‘’“”", "''\"\"")
_WIDE_FORMS = re.compile("[\u3000\uff01-\uffee]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_LABEL = re.compile(r"\s*[(\[]?([A-Za-z])(?:[)\].:、]\s*|\s+-\s+)(?=\S)")
"""Letter that an option carries in its own text: "(A) Man", "b) cat", "C. bird"."""


def canonical(text: str) -> str:
    """A text with composed letters (NFC), full-width forms in their usual width, and no invisible characters.

    Two texts that look alike are then equal. Case and punctuation stay.

    Example:
        >>> canonical("e\u0301te\u0301") == "\u00e9t\u00e9", canonical("\uff08\uff21\uff09 dog\u200b")
        (True, '(A) dog')
    """
    usual_width = _WIDE_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", usual_width))


def normalise(text: str) -> str:
    """Fold case, width and composition of letters, collapse whitespace, and strip quotes, brackets and sentence marks
    from both ends.

    A text that consists of such marks alone is returned unstripped.

    Example:
        >>> normalise('  "Rain  on a roof." ')
        'rain on a roof'
        >>> normalise("C#"), normalise("...")
        ('c#', '...')
    """
    joined = " ".join(fold(text).split())
    return joined.strip(OUTER_PUNCTUATION + " ") or joined


def fold(text: str) -> str:
    """The text in one case and one form of its letters, with straight quotes."""
    return canonical(canonical(text).casefold()).translate(_QUOTES)


def _labels(choices: tuple[str, ...]) -> list[str]:
    """The letters that options carry in their texts, in lower case; "" for an option without one."""
    matches = [_LABEL.match(canonical(choice)) for choice in choices]
    return [match[1].lower() if match else "" for match in matches]


def places_by_letter(choices: tuple[str, ...]) -> dict[str, int]:
    """Letter -> index of the option that it means: the one that carries it, or else the one at its place.

    Empty where only some options carry letters, or two different options the same one: then no letter is certain.
    """
    labels = _labels(choices)
    if not any(labels):
        return {chr(ord("a") + index): index for index in range(min(len(choices), 26))}
    places = {label: choices.index(choice) for label, choice in zip(labels, choices, strict=True)}
    return places if all(labels) and len(places) == len(set(choices)) else {}


def without_labels(choices: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of options without the letters that they carry; unchanged unless all carry different ones."""
    labels = _labels(choices)
    if not (choices and all(labels) and places_by_letter(choices)):
        return choices
    return tuple(_LABEL.sub("", canonical(choice), count=1).strip() for choice in choices)
