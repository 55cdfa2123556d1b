"""The verifiable instructions of IFEval (arXiv:2311.07911) as VoiceBench checks them: 25 rules about a text's form.

A rule is named by an id (`keywords:existence`) and takes its numbers and words from `kwargs`. The rules are kept as
they are published, with their traps: "RAINY" holds the keyword "rain", and a text whose language cannot be detected is
in the language that was asked for.

Source: MatthewCYM/VoiceBench@5338154, src/evaluator/instruction_following_eval (Apache-2.0, by the authors of IFEval);
compared case by case (`tests/golden`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.metrics.instructions.english import capital_words, is_language, sentences

Rule = Callable[[str, Mapping[str, Any]], bool]
"""`rule(response, kwargs)`: whether the response follows the instruction."""
CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
WORD_ENDS = ".,?!'\""
"""Marks that end the first word of a paragraph."""
JSON_FENCES = ("```json", "```Json", "```JSON", "```")


def follows(instruction_id: str, kwargs: Mapping[str, Any], response: str) -> bool:
    """Whether a response follows one instruction.

    >>> follows("keywords:existence", {"keywords": ["rain"]}, "RAINY"), follows("punctuation:no_comma", {}, "a, b")
    (True, False)

    Args:
        instruction_id: A key of `RULES`.
        kwargs: Numbers and words of the instruction; values that are null are left out.
        response: The model's answer. An empty one follows nothing.
    Raises:
        DataError: if there is no such rule, or it lacks a value.
        ConfigError: if a rule needs a package that is not installed.
    """
    rule = RULES.get(instruction_id)
    if rule is None:
        raise DataError(f"instruction {instruction_id!r} is none of {', '.join(RULES)}; correct the item")
    if not response.strip():
        return False
    try:
        return rule(response, {name: value for name, value in kwargs.items() if value is not None})
    except KeyError as error:
        raise DataError(f"instruction {instruction_id!r} lacks {error} in its kwargs {dict(kwargs)!r}") from error


def without_tags(response: str) -> str:
    """The response without a tag of a speaker at its beginning or end, which some models write."""
    text = response.strip()
    if text.startswith(("<1>", "<2>", "<3>")):
        text = text[3:].strip()
    return text.removesuffix("<|user|>").strip() if text.endswith("<|user|>") else text


def loose_forms(response: str) -> list[str]:
    """The forms in which the loose reading tries a response: without its first or last line, or without asterisks."""
    lines = response.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = [response, *("\n".join(cut).strip() for cut in cuts[1:])]
    return [form for text in texts for form in (text, text.replace("*", ""))]


def follows_loosely(instruction_id: str, kwargs: Mapping[str, Any], response: str) -> bool:
    """Whether any of the `loose_forms` of a response follows the instruction."""
    return any(follows(instruction_id, kwargs, form) for form in loose_forms(response))


def _compares(count: int, limit: int, relation: str) -> bool:
    """`relation` is "less than" or "at least"."""
    return count < limit if relation == "less than" else count >= limit


def _counted(count: Callable[[str], int], limit: str, relation: str = "relation") -> Rule:
    """A rule about a number, which `kwargs` limits from one side."""
    return lambda text, kwargs: _compares(count(text), int(kwargs[limit]), kwargs[relation])


def _keyword_frequency(text: str, kwargs: Mapping[str, Any]) -> bool:
    count = len(re.findall(kwargs["keyword"], text, re.IGNORECASE))
    return _compares(count, int(kwargs["frequency"]), kwargs["relation"])


def _letter_frequency(text: str, kwargs: Mapping[str, Any]) -> bool:
    count = text.lower().count(kwargs["letter"].lower())
    return _compares(count, int(kwargs["let_frequency"]), kwargs["let_relation"])


def _lacks_words(text: str, words: list[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in words)


def _paragraphs(text: str) -> int | None:
    """Number of paragraphs between `***`; None if one in the middle is empty."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if not all(parts[1:-1]):
        return None
    return sum(bool(part) for part in parts)


def _first_word_of_paragraph(text: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether there are as many paragraphs as wanted, and the n-th begins with the word."""
    parts = text.split("\n\n")
    number, count = int(kwargs["nth_paragraph"]), sum(bool(part.strip()) for part in parts)
    if number > count or not parts[number - 1].strip():
        return False
    word = parts[number - 1].split()[0].lstrip("'").lstrip('"')
    end = next((place for place, letter in enumerate(word) if letter in WORD_ENDS), len(word))
    return count == int(kwargs["num_paragraphs"]) and word[:end].lower() == kwargs["first_word"].lower()


def _has_postscript(text: str, marker: str) -> bool:
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = patterns.get(marker, rf"\s*{marker.lower()}.*$")
    return re.search(pattern, text.lower(), re.MULTILINE) is not None


def _bullets(text: str) -> int:
    return sum(len(re.findall(pattern, text, re.MULTILINE)) for pattern in (r"^\s*\*[^\*].*$", r"^\s*-.*$"))


def _highlights(text: str) -> int:
    """Texts between asterisks, those between double ones counted by both patterns."""
    single = (part.strip("*") for part in re.findall(r"\*[^\n\*]*\*", text))
    double = (part.removeprefix("**").removesuffix("**") for part in re.findall(r"\*\*[^\n\*]*\*\*", text))
    return sum(bool(part.strip()) for part in (*single, *double))


def _sections(text: str, splitter: str) -> int:
    return len(re.split(rf"\s?{splitter}\s?\d+\s?", text)) - 1


def _is_json(text: str) -> bool:
    plain = text.strip()
    for fence in JSON_FENCES:
        plain = plain.removeprefix(fence)
    try:
        json.loads(plain.removesuffix("```").strip())
    except ValueError:
        return False
    return True


def _has_title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    """Whether six asterisks divide the text into two different responses."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _is_quoted(text: str) -> bool:
    plain = text.strip()
    return len(plain) > 1 and plain[0] == plain[-1] == '"'


RULES: dict[str, Rule] = {
    "keywords:existence": lambda text, kwargs: all(re.search(word, text, re.IGNORECASE) for word in kwargs["keywords"]),
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": lambda text, kwargs: _lacks_words(text, kwargs["forbidden_words"]),
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": lambda text, kwargs: is_language(text, kwargs["language"]),
    "length_constraints:number_sentences": _counted(sentences, "num_sentences"),
    "length_constraints:number_paragraphs": lambda text, kwargs: _paragraphs(text) == int(kwargs["num_paragraphs"]),
    "length_constraints:number_words": _counted(lambda text: len(re.findall(r"\w+", text)), "num_words"),
    "length_constraints:nth_paragraph_first_word": _first_word_of_paragraph,
    "detectable_content:number_placeholders": lambda text, kwargs: (
        len(re.findall(r"\[.*?\]", text)) >= int(kwargs["num_placeholders"])
    ),
    "detectable_content:postscript": lambda text, kwargs: _has_postscript(text, kwargs["postscript_marker"]),
    "detectable_format:number_bullet_lists": lambda text, kwargs: _bullets(text) == int(kwargs["num_bullets"]),
    "detectable_format:constrained_response": lambda text, kwargs: any(
        answer in text for answer in CONSTRAINED_ANSWERS
    ),
    "detectable_format:number_highlighted_sections": lambda text, kwargs: (
        _highlights(text) >= int(kwargs["num_highlights"])
    ),
    "detectable_format:multiple_sections": lambda text, kwargs: (
        _sections(text, kwargs["section_spliter"]) >= int(kwargs["num_sections"])
    ),
    "detectable_format:json_format": lambda text, kwargs: _is_json(text),
    "detectable_format:title": lambda text, kwargs: _has_title(text),
    "combination:two_responses": lambda text, kwargs: _two_responses(text),
    "combination:repeat_prompt": lambda text, kwargs: (
        text.strip().lower().startswith(kwargs["prompt_to_repeat"].strip().lower())
    ),
    "startend:end_checker": lambda text, kwargs: (
        text.strip().strip('"').lower().endswith(kwargs["end_phrase"].strip().lower())
    ),
    "change_case:capital_word_frequency": _counted(capital_words, "capital_frequency", "capital_relation"),
    "change_case:english_capital": lambda text, kwargs: text.isupper() and is_language(text, "en"),
    "change_case:english_lowercase": lambda text, kwargs: text.islower() and is_language(text, "en"),
    "punctuation:no_comma": lambda text, kwargs: "," not in text,
    "startend:quotation": lambda text, kwargs: _is_quoted(text),
}
"""Rules by id."""


def instruction_rates(strict: Sequence[Sequence[bool]], loose: Sequence[Sequence[bool]]) -> dict[str, float]:
    """The four rates of VoiceBench's subset ifeval, and their mean.

    Args:
        strict: For each item, whether the response follows each of its instructions.
        loose: The same in the loose reading.
    Returns:
        `strict_prompt` (share of items all of whose instructions are followed), `strict_instruction` (share of
        instructions), the same for `loose`, and `final`, which is the subset's score.
    """
    rates = {}
    for name, verdicts in (("strict", strict), ("loose", loose)):
        instructions = [verdict for item in verdicts for verdict in item]
        rates[f"{name}_prompt"] = sum(map(all, verdicts)) / len(verdicts)
        rates[f"{name}_instruction"] = sum(instructions) / len(instructions)
    return rates | {"final": sum(rates.values()) / len(rates)}
