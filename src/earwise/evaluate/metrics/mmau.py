"""Scores of one answer, and MMAU's summary lines: official, strict and lenient side by side.

Between the engine's output and `samples.jsonl`. The official matcher is the one of MMAU and MMAR (papers/evaluation.md
section 2): words, not order. It is applied unchanged, to the raw output; `lenient` applies it after `answers.parse`;
`strict` wants the option's text exactly. Whatever cannot be read is wrong and counted.

Deviations: 1. a prediction that is missing, null or a number is an `error` and wrong, where the official program skips
a missing one before counting (`legacy_skip=True` does the same) and crashes on the others; 2. a group that the layout
does not know is listed after those it knows, where the official program crashes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from earwise.answers import mentions, normalise, parse, said
from earwise.errors import ScoringError
from earwise.types import Example, Parsed, Score

SCORER = "mmau-words/1"
"""Name and version of `score`, for result rows; changes whenever a verdict could."""

_WORD = re.compile(r"\b\w+\b")
_RULE = "*" * 30


def string_match(answer: str, prediction: str, choices: Iterable[str]) -> bool:
    """The official verdict: all words of the answer are said, and no word that only other options have.

    >>> string_match("dog bark", "A Dog: bark!", ["dog bark", "cat"]), string_match("dog", "dog, cat", ["dog", "cat"])
    (True, False)

    Source: Sakshi113/MMAU@f0a4a97 and ddlBoJack/MMAR@3bce090, in papers/evaluation.md section 2.
    """
    wanted, spoken = _words(answer), _words(prediction)
    foreign = set().union(*(_words(choice) for choice in choices)) - wanted
    return bool(spoken) and wanted <= spoken and not (foreign & spoken)


def score(example: Example, output: object) -> Score:
    """All three verdicts on one output.

    With options: official is the official matcher on the raw output, lenient the same on the parsed option, strict asks
    that the answer as it was said is the option's text exactly. Open answers: official is equality with any accepted
    answer up to case, blanks and outer punctuation, strict is equality, lenient asks that an accepted answer is said as
    whole words.

    Args:
        example: The item; without an answer all verdicts are 0 and only `status` and `answer` mean something.
        output: What the model said; anything but a string is an `error`.
    """
    if not isinstance(output, str):
        return Score(0.0, 0.0, 0.0, "error", None, f"the prediction is {output!r}, not text")
    parsed = parse(output, example.choices)
    verbatim = said(output)
    spoken = "" if verbatim is None else verbatim
    exact = bool(spoken) and any(spoken == answer.strip() for answer in example.answer)
    if example.choices:
        official = any(string_match(answer, output, example.choices) for answer in example.answer)
        lenient = any(string_match(answer, parsed.answer or "", example.choices) for answer in example.answer)
    else:
        official = bool(spoken) and normalise(spoken) in {normalise(answer) for answer in example.answer}
        lenient = any(mentions(spoken, answer) for answer in example.answer) or exact
    return Score(float(official), float(exact), float(lenient), parsed.status, parsed.answer, _why(parsed, spoken))


@dataclass(frozen=True, slots=True)
class Layout:
    """The groups of an official summary: heading, field of the row, and the values that are always listed, in order.

    `groups` whose values are empty list what they meet, in order of appearance.
    """

    prediction_key: str
    groups: tuple[tuple[str, str, tuple[str, ...]], ...]


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
        ScoringError: if nothing is left to count, or a row lacks a field.
    """
    verdicts: dict[str, dict[str, list[bool]]] = {}
    for heading, _, names in layout.groups:
        verdicts[heading] = {name: [] for name in names}
    everything: list[bool] = []
    missing = 0
    for number, row in enumerate(rows, 1):
        if layout.prediction_key not in row:
            if legacy_skip:
                continue
            missing += 1
        absent = [key for key in ("answer", "choices", *(key for _, key, _ in layout.groups)) if key not in row]
        if absent:
            raise ScoringError(f"row {number} has no {', '.join(absent)}; add predictions to the benchmark's own rows")
        prediction = row.get(layout.prediction_key)
        correct = isinstance(prediction, str) and string_match(row["answer"], prediction, row["choices"])
        everything.append(correct)
        for heading, key, _ in layout.groups:
            verdicts[heading].setdefault(str(row[key]), []).append(correct)
    if not everything:
        raise ScoringError(f"no row has a prediction under {layout.prediction_key!r}; there is nothing to count")
    groups = {heading: {name: _percent(hits) for name, hits in group.items()} for heading, group in verdicts.items()}
    return {"groups": groups, "total": _percent(everything), "no_prediction_count": missing}


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


def _why(parsed: Parsed, spoken: str) -> str:
    if parsed.status == "ok":
        return ""
    shown = f": {spoken[:80]!r}" if spoken else ""
    return (
        "names more than one answer" if parsed.status == "ambiguous" else "names no answer that can be read"
    ) + shown
