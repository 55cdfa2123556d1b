"""MMAU-Pro's rules for instructions about the form of an answer ("at least 50 words", "no commas").

A rule is named by the item's `task_identifier` and takes its numbers and words from `kwargs`. The rules are kept as
they are published, with their traps: "The ships sailed" holds a postscript, for example, since only letters are
compared.

Source: sonalkum/MMAUPro@960e93a, evaluate_mmau_pro_comprehensive.py; compared case by case (`tests/golden`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.metrics.instructions.english import sentences

Rule = Callable[[str, Mapping[str, Any]], bool]
"""`rule(response, kwargs)`: whether the response follows the instruction."""
MOST = 999
"""Upper end of a range that names none."""


def follows_instruction(
    task_identifier: str, response: str, kwargs: Mapping[str, Any] | None, prompt: str = ""
) -> bool:
    """Whether a response follows the instruction of an item.

    >>> follows_instruction("Number Words (at most)", "rain and wind", {"N": 3})
    True

    Args:
        task_identifier: Name of the rule; a response never follows an unknown one.
        response: The model's answer.
        kwargs: Numbers and words of the rule.
        prompt: Transcript of the spoken instruction, for `Repeat Prompt`.
    Raises:
        DataError: if `kwargs` holds a value of the wrong type.
        ConfigError: if a rule counts sentences and nltk is not installed.
    """
    if task_identifier == "Repeat Prompt":
        return response.strip().lower().startswith(prompt.strip().lower())
    rule = RULES.get(task_identifier)
    if rule is None:
        return False
    try:
        return rule(response, kwargs or {})
    except (TypeError, AttributeError) as error:
        raise DataError(f"rule {task_identifier!r} cannot use kwargs {kwargs!r}: {error}; correct the item") from error


def _letters(text: str, kept: str = "") -> str:
    """The text's Latin letters in lower case, and the characters that are kept."""
    return re.sub(rf"[^a-zA-Z{kept}]", "", text).lower()


def _words(text: str) -> int:
    return len(text.split())


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in text.split())


def _paragraphs(text: str) -> int:
    return sum(bool(part.strip()) for part in text.split("***"))


def _matches(pattern: str) -> Callable[[str], int]:
    return lambda text: len(re.findall(pattern, text))


def _sections(text: str, splitter: str) -> int:
    if splitter is None:
        raise TypeError("section_splitter is null")
    return sum(bool(part.strip()) for part in re.split(rf"\s*{re.escape(splitter)}\s*", text.strip()))


def _frequency(text: str, keyword: str) -> int:
    return len(re.findall(rf"\b{re.escape(keyword.lower())}\b", text.lower()))


def _listed(kwargs: Mapping[str, Any], name: str) -> list[str]:
    return [word.lower() for word in kwargs.get(name, "").split(", ")]


def _two_responses(text: str) -> bool:
    parts = [part.lower().strip() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


def _at_least(count: Callable[[str], int]) -> Rule:
    return lambda text, kwargs: count(text) >= kwargs.get("N", 0)


def _at_most(count: Callable[[str], int]) -> Rule:
    return lambda text, kwargs: count(text) <= kwargs.get("N", 0)


def _exactly(count: Callable[[str], int]) -> Rule:
    return lambda text, kwargs: count(text) == kwargs.get("N", 0)


def _within(count: Callable[[str], int]) -> Rule:
    return lambda text, kwargs: kwargs.get("N1", 0) <= count(text) <= kwargs.get("N2", MOST)


def _relations(name: str, count: Callable[[str], int]) -> dict[str, Rule]:
    """The three rules about one number."""
    return {
        f"{name} (at least)": _at_least(count),
        f"{name} (at most)": _at_most(count),
        f"{name} (range)": _within(count),
    }


RULES: dict[str, Rule] = {
    "Include Keywords": lambda text, kwargs: all(word in text.lower() for word in _listed(kwargs, "keywords")),
    "Keyword Frequency": lambda text, kwargs: _frequency(text, kwargs.get("keyword", "")) == kwargs.get("N", 0),
    "Forbidden Words": lambda text, kwargs: (
        not any(word in text.lower() for word in _listed(kwargs, "forbidden_words"))
    ),
    "Number Paragraphs": _exactly(_paragraphs),
    **_relations("Number Words", _words),
    **_relations("Number Sentences", sentences),
    **_relations("All-capital Words", _capital_words),
    "Postscript": lambda text, kwargs: _letters(kwargs.get("postscript_marker", "")) in _letters(text),
    "Number Placeholder": _at_least(_matches(r"\[[^\]]+\]")),
    "Number Bullets": _exactly(_matches(r"(?:^|\n)\s*\*\s+")),
    "Title": lambda text, kwargs: bool(re.search("<<[^>]+>>", text)),
    "Minimum Number Highlighted Section": _at_least(_matches(r"\*([^*]+)\*")),
    "Multiple Sections": lambda text, kwargs: _sections(text, kwargs.get("section_splitter", "")) == kwargs.get("N", 0),
    "Two Responses": lambda text, kwargs: _two_responses(text),
    "All Uppercase": lambda text, kwargs: text.isupper(),
    "All Lowercase": lambda text, kwargs: text.islower(),
    "Start Checker": lambda text, kwargs: _letters(text, " ").startswith(_letters(kwargs.get("start_phrase", ""), " ")),
    "End Checker": lambda text, kwargs: _letters(text, " ").endswith(_letters(kwargs.get("end_phrase", ""), " ")),
    "Quotation": lambda text, kwargs: text.strip().startswith('"') and text.strip().endswith('"'),
    "No Commas": lambda text, kwargs: "," not in text,
}
"""Rules by name; `Repeat Prompt` needs the prompt and stands in `follows_instruction`."""
