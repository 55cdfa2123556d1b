"""MMAU's scorer: three scores of one completion, and the summary that MMAU's and MMAR's programs print.

Between the engine's output and `samples.jsonl`; also used for manifests. `official` is the matcher of MMAU
(arXiv:2410.19168) and MMAR (arXiv:2505.13032): sets of words, without order. It is applied unchanged to the raw output.
`lenient` applies it to the answer that `answers.parse` extracts; `strict` wants the option's text exactly. A completion
whose answer cannot be read is wrong and counted.

Source: Sakshi113/MMAU@f0a4a97 and ddlBoJack/MMAR@3bce090, evaluation.py. Deviations: (1) a prediction that is missing,
null or a number is an `error` and wrong, where the official program skips missing ones before counting
(`legacy_skip=True` does the same) and crashes on the others; (2) a group that the layout does not know is listed after
those it knows, where the official program crashes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from earwise.answers import extract_answer, mentions, parse
from earwise.answers.option_texts import canonical, normalise
from earwise.errors import ScoringError
from earwise.types import Example, Parsed, Score

SCORER = "mmau-words/2"
"""Name and version of `score`, for result rows; it changes whenever a score could."""
SCORE_NOTES = {
    "official": "the official matcher on the raw output",
    "strict": "the answer is the option's text, letter for letter",
    "lenient": "the official matcher on the extracted answer",
}
"""Names of the scores and what each one measures."""

_WORD = re.compile(r"\b\w+\b")
_RULE = "*" * 30


def string_match(answer: str, prediction: str, choices: Iterable[str]) -> bool:
    """The official matcher: the prediction holds all words of the answer, and no word that only other options have.

    >>> string_match("dog bark", "A Dog: bark!", ["dog bark", "cat"]), string_match("dog", "dog, cat", ["dog", "cat"])
    (True, False)

    Source: `string_match` of both released programs, see the module's docstring.
    """
    answer_words, predicted_words = _words(answer), _words(prediction)
    foreign_words = set().union(*(_words(choice) for choice in choices)) - answer_words
    return bool(predicted_words) and answer_words <= predicted_words and not (foreign_words & predicted_words)


def score(example: Example, completion: object) -> Score:
    """The scores `official`, `strict` and `lenient` of one completion.

    With options, `official` is the official matcher on the raw output and `lenient` the same on the parsed option;
    `strict` asks that the extracted answer is the option's text exactly. For open questions `official` is equality with
    any accepted answer up to case, blanks and outer punctuation, `strict` is exact equality, and `lenient` asks that
    the answer mentions an accepted one as whole words.

    Args:
        example: The item; without an answer all scores are 0 and only `status` and `answer` mean something.
        completion: The model's output; anything but a string is an `error`.
    """
    if not isinstance(completion, str):
        values = dict.fromkeys(SCORE_NOTES, 0.0)
        return Score(values, "error", None, f"the prediction is {completion!r}, not text")
    parsed = parse(completion, example.choices)
    answer_text = extract_answer(completion) or ""
    accepted = {canonical(gold).strip() for gold in example.answer}
    strict = bool(answer_text) and canonical(answer_text).strip() in accepted
    if example.choices:
        official = any(string_match(gold, completion, example.choices) for gold in example.answer)
        named = canonical(parsed.answer or "")
        choices = [canonical(choice) for choice in example.choices]
        lenient = any(string_match(gold, named, choices) for gold in accepted)
    else:
        official = bool(answer_text) and normalise(answer_text) in {normalise(gold) for gold in example.answer}
        lenient = any(mentions(answer_text, gold) for gold in example.answer) or strict
    values = {"official": float(official), "strict": float(strict), "lenient": float(lenient)}
    return Score(values, parsed.status, parsed.answer, _explanation(parsed, answer_text))


@dataclass(frozen=True, slots=True)
class Layout:
    """The groups of an official summary."""

    prediction_key: str
    """Field of a row that holds the prediction."""
    groups: tuple[tuple[str, str, tuple[str, ...]], ...]
    """Heading, field of the row, and the values that are always listed, in order. Where no values are given, those
    that occur are listed in order of appearance."""


MMAU = Layout(
    "model_output",
    (
        ("Task-wise Accuracy", "task", ("sound", "music", "speech")),
        ("Difficulty-wise Accuracy", "difficulty", ("easy", "hard", "medium")),
        ("Sub-category-wise Accuracy", "sub-category", ()),
    ),
)
_MIXES = ("mix-sound-music", "mix-sound-speech", "mix-music-speech", "mix-sound-music-speech")
_LAYERS = ("Signal Layer", "Perception Layer", "Semantic Layer", "Cultural Layer")
MMAR = Layout(
    "answer_prediction",
    (
        ("Modality-wise Accuracy", "modality", ("sound", "music", "speech", *_MIXES)),
        ("Category-wise Accuracy", "category", _LAYERS),
        ("Sub-category-wise Accuracy", "sub-category", ()),
    ),
)


def official_summary(
    rows: Iterable[Mapping[str, Any]], layout: Layout = MMAU, *, legacy_skip: bool = False
) -> dict[str, Any]:
    """Accuracies by group as the official program counts them, in percent, rounded to two places.

    Args:
        rows: Items of the benchmark's own file with `answer`, `choices`, the layout's fields and its prediction key.
        layout: `MMAU` or `MMAR`.
        legacy_skip: Leave out rows without the prediction key before counting, as the official program does; by default
            they are wrong and counted.
    Returns:
        `groups` (heading -> value -> `accuracy`, `count`), `total` (`accuracy`, `count`) and `no_prediction_count`.
    Raises:
        ScoringError: if no row is left to count, or a row lacks a field.
    """
    correct_by_group: dict[str, dict[str, list[bool]]] = {}
    for heading, _, names in layout.groups:
        correct_by_group[heading] = {name: [] for name in names}
    all_correct: list[bool] = []
    num_missing = 0
    for number, row in enumerate(rows, 1):
        if layout.prediction_key not in row:
            if legacy_skip:
                continue
            num_missing += 1
        absent = [key for key in ("answer", "choices", *(key for _, key, _ in layout.groups)) if key not in row]
        if absent:
            raise ScoringError(f"row {number} has no {', '.join(absent)}; add predictions to the benchmark's own rows")
        prediction = row.get(layout.prediction_key)
        correct = isinstance(prediction, str) and string_match(row["answer"], prediction, row["choices"])
        all_correct.append(correct)
        for heading, key, _ in layout.groups:
            correct_by_group[heading].setdefault(str(row[key]), []).append(correct)
    if not all_correct:
        raise ScoringError(f"no row has a prediction under {layout.prediction_key!r}; there is nothing to count")
    groups = {
        heading: {name: _percent(flags) for name, flags in group.items()} for heading, group in correct_by_group.items()
    }
    return {"groups": groups, "total": _percent(all_correct), "no_prediction_count": num_missing}


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The lines that the official program prints for a summary."""
    lines: list[str] = []
    for heading, group in summary["groups"].items():
        lines += [_RULE, f"{heading}:"]
        lines += [f"{name} : {row['accuracy']:.2f}% over {row['count']} samples" for name, row in group.items()]
    total = summary["total"]
    lines += [_RULE, f"Total Accuracy: {total['accuracy']:.2f}% over {total['count']} samples"]
    return [*lines, _RULE, f"No prediction count: {summary['no_prediction_count']}"]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _percent(correct: list[bool]) -> dict[str, float]:
    return {"accuracy": round(sum(correct) / len(correct) * 100, 2) if correct else 0.0, "count": len(correct)}


def _explanation(parsed: Parsed, answer_text: str) -> str:
    """Why an answer could not be read; empty if it could."""
    if parsed.status == "ok":
        return ""
    quoted = f": {answer_text[:80]!r}" if answer_text else ""
    if parsed.status == "ambiguous":
        return f"names more than one answer{quoted}"
    return f"names no answer that can be read{quoted}"
