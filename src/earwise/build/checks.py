"""Is a data set fit to train and to measure with? Bias for a deaf model, leaks, contradictions, silence, licences.

Run after a builder and by hand on any manifest. Everything is counted into one report; what is wrong is said in one
line each under `problems`. The bias checks ask of four listeners without ears how often they are right: one that always
takes the same position, one that takes the longest option, the shortest, and one that has learnt from other questions
which texts tend to be answers (naive Bayes on the option, and on the option together with the question). Under chance,
1/k each, the sum of k-way questions has a known deviation: more than three of it above chance is a problem. Below
chance is none: where every class is as often an answer as it must be, having been one in the half that was learnt from
makes it less likely in the other.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from earwise.audio import audio_sha256, decode, is_silent
from earwise.errors import AudioError, DataError
from earwise.types import Example

DEVIATIONS = 3.0
MIN_QUESTIONS = 20  # fewer tell nothing about bias
PRIOR = 2.0  # pseudo-counts that pull a rare option's rate to chance


def check(examples: Sequence[Example], *, listen: bool = True, seed: int = 0, strict: bool = False) -> dict[str, Any]:
    """Check a data set (all splits together, so that leaks between them are seen).

    Args:
        examples: From one or several manifests.
        listen: Also read every sound: copies across splits, silence, broken files.
        seed: Decides the halves that the blind listener learns from and is tested on.
        strict: Raise if there is any problem.
    Returns:
        Plain JSON values: `n`, `bias` (per listener: n, accuracy, chance, low, high), `bias_by_split` (there also
        `blind_from_train`: learnt from the training split), `answers` (most frequent), `leaks`, `copies`, `conflicts`,
        `duplicates`, `silent`, `broken`, `licences` (licence -> clips), `problems`.
    Raises:
        DataError: if `strict` and something is wrong; the message holds the first problem and how many there are.
    """
    splits = sorted({example.split for example in examples})
    by_split = {split: [example for example in examples if example.split == split] for split in splits}
    by_listener = {split: bias(members, seed) for split, members in by_split.items()}
    for split in set(splits) - {"train"} if by_listener.get("train") else ():
        if by_listener[split]:
            by_listener[split]["blind_from_train"] = _rate(_asked(by_split[split]), blind(_asked(by_split["train"])))
    report: dict[str, Any] = {
        "n": len(examples),
        "bias": bias(examples, seed),
        "bias_by_split": by_listener,
        "answers": Counter(example.answer[0] for example in examples if example.answer).most_common(10),
        "leaks": _leaks(examples),
        "conflicts": _conflicts(examples),
        "duplicates": _duplicates(examples),
        "licences": _licences(examples),
    }
    report |= _listen(examples) if listen else {"copies": [], "silent": [], "broken": []}
    report["problems"] = problems(report)
    if strict and report["problems"]:
        raise DataError(f"{report['problems'][0]} ({len(report['problems'])} problems in all; see the report)")
    return report


def bias(examples: Sequence[Example], seed: int = 0) -> dict[str, dict[str, float]]:
    """How often listeners without ears are right.

    Args:
        examples: Those without choices or answer are passed over.
        seed: Decides the halves of the blind listener; a group is never in both.
    Returns:
        Listener -> n, accuracy, chance (mean of 1/k), low and high (accuracy -/+ three deviations under chance).
        `position` is the best of all fixed positions.
    """
    asked = _asked(examples)
    widest = max((len(example.choices) for example in asked), default=0)
    positions = [_rate(asked, _at(position)) for position in range(widest)]
    listeners = {"position": max(positions, key=lambda rate: rate["low"] - rate["chance"])} if positions else {}
    listeners |= {"longest": _rate(asked, _length(1)), "shortest": _rate(asked, _length(-1))} if asked else {}
    halves = _halves(asked, seed)
    if all(halves):
        first, second = halves
        known = {
            example.id: scores for example, scores in [*_answer(blind(first), second), *_answer(blind(second), first)]
        }
        listeners["blind"] = _rate(asked, lambda example: known[example.id])
    return listeners


def blind(examples: Iterable[Example]) -> Callable[[Example], list[float]]:
    """Learn from examples, without sound, what tends to be the answer.

    Returns:
        Function from an example to one score per option: log-odds of its text, plus those of text and question.
    """
    right, chance = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for example in examples:
        for option in example.choices:
            for key in (("", option), (example.question, option)):
                chance[key] += 1 / len(example.choices)  # type: ignore[assignment]
                right[key] += option == example.answer[0]

    def score(example: Example) -> list[float]:
        keys = [(("", option), (example.question, option)) for option in example.choices]
        return [sum(math.log((right[key] + PRIOR) / (chance[key] + PRIOR)) for key in pair) for pair in keys]

    return score


def _asked(examples: Iterable[Example]) -> list[Example]:
    return [example for example in examples if example.choices and example.answer]


def _answer(
    score: Callable[[Example], list[float]], examples: Iterable[Example]
) -> Iterable[tuple[Example, list[float]]]:
    return ((example, score(example)) for example in examples)


def problems(report: dict[str, Any]) -> list[str]:
    """The lines of a report that need a hand."""
    found = []
    for where, listeners in [("all", report["bias"]), *report["bias_by_split"].items()]:
        for listener, rate in listeners.items():
            if rate["n"] >= MIN_QUESTIONS and rate["low"] > rate["chance"]:
                found.append(
                    f"bias ({where}): without sound, the {listener} listener is right {rate['accuracy']:.3f} of "
                    f"{rate['n']:.0f}, chance is {rate['chance']:.3f}; draw distractors as often as they are answers "
                    "and shuffle options"
                )
    found += [f"leak: {line}; keep a group in one split" for line in report["leaks"]]
    found += [f"copy: {line}; keep the copies in one split" for line in report["copies"]]
    found += [f"conflict: {line}; correct or drop one" for line in report["conflicts"]]
    found += [f"duplicate: {line}; drop one" for line in report["duplicates"]]
    found += [f"silent: {path}; drop it or record it again" for path in report["silent"]]
    found += [f"broken: {line}" for line in report["broken"]]
    if unnamed := report["licences"].get("", 0):
        found.append(f"licence: {unnamed} clips name none; fill in the field `licence`")
    return found


def _at(position: int) -> Callable[[Example], list[float]]:
    return lambda example: [float(number == position) for number in range(len(example.choices))]


def _length(sign: int) -> Callable[[Example], list[float]]:
    return lambda example: [float(sign * len(option)) for option in example.choices]


def _rate(examples: Sequence[Example], score: Callable[[Example], list[float]]) -> dict[str, float]:
    """Expected accuracy of taking the option with the best score; ties are shared out, so their order is nothing."""
    hits = 0.0
    for example in examples:
        scores = score(example)
        best = [option for option, value in zip(example.choices, scores, strict=True) if value >= max(scores) - 1e-12]
        hits += (example.answer[0] in best) / len(best)
    rates = [1 / len(example.choices) for example in examples]
    chance = sum(rates) / len(rates)
    spread = DEVIATIONS * math.sqrt(sum(rate * (1 - rate) for rate in rates)) / len(rates)
    accuracy = hits / len(rates)
    return {
        "n": len(rates),
        "accuracy": accuracy,
        "chance": chance,
        "low": accuracy - spread,
        "high": accuracy + spread,
    }


def _halves(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    groups = sorted({example.group or example.id for example in examples})
    random.Random(seed).shuffle(groups)
    first = set(groups[: len(groups) // 2])
    halves: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        halves[(example.group or example.id) not in first].append(example)
    return halves


def _leaks(examples: Iterable[Example]) -> list[str]:
    """Groups, and files, that are in more than one split."""
    where: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        for name in [f"group {example.group!r}"] * bool(example.group) + [
            f"file {path}" for path in example.audio_paths
        ]:
            where[name].add(example.split)
    return [f"{name} is in {' and '.join(sorted(found))}" for name, found in sorted(where.items()) if len(found) > 1]


def _question_key(example: Example) -> tuple[Any, ...]:
    return example.audio_paths, example.question, tuple(sorted(example.choices))


def _conflicts(examples: Iterable[Example]) -> list[str]:
    """The same question about the same clip with answers that have nothing in common."""
    seen: dict[tuple[Any, ...], Example] = {}
    found = []
    for example in examples:
        if example.task == "caption":  # many things can be said of one sound, and all of them be true
            continue
        first = seen.setdefault(_question_key(example), example)
        if example.answer and first.answer and not set(first.answer) & set(example.answer):
            found.append(
                f"{first.id} says {first.answer[0]!r}, {example.id} says {example.answer[0]!r} to one question"
            )
    return found


def _duplicates(examples: Iterable[Example]) -> list[str]:
    seen: dict[tuple[Any, ...], str] = {}
    found = []
    for example in examples:
        first = seen.setdefault((*_question_key(example), example.answer), example.id)
        if first != example.id:
            found.append(f"{first} and {example.id} are one question")
    return found


def _licences(examples: Iterable[Example]) -> dict[str, int]:
    """Licence -> number of clips, most frequent first."""
    clips = {path: example.licence for example in examples for path in example.audio_paths}
    return dict(Counter(clips.values()).most_common())


def _listen(examples: Iterable[Example]) -> dict[str, list[str]]:
    splits: dict[Path, str] = {}
    for example in examples:
        for path in example.audio_paths:
            splits.setdefault(path, example.split)
    hashes: dict[str, dict[str, Path]] = defaultdict(dict)
    silent, broken = [], []
    for path, split in sorted(splits.items()):
        try:
            if is_silent(decode(path)):
                silent.append(str(path))
            hashes[audio_sha256(path)].setdefault(split, path)
        except AudioError as error:
            broken.append(str(error))
    copies = [
        " and ".join(f"{path} ({split})" for split, path in sorted(found.items())) + " are the same bytes"
        for found in hashes.values()
        if len(found) > 1
    ]
    return {"copies": sorted(copies), "silent": silent, "broken": broken}
