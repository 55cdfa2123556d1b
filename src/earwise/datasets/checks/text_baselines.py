"""Can a listener without ears answer? Five of them try: position, longest, shortest, blind, and options.

Called by `build/checks.py`. `position` takes the same place every time, `longest` and `shortest` go by length, `blind`
has learnt from other questions which texts tend to be answers (naive Bayes on the option, and on the option together
with the question), `options` is a classifier on the shape and the words of the options, cross-validated. Under chance,
1/k each, the sum of k-way questions has a known deviation: more than three of it above chance is a problem. Below
chance is none: where every class is as often an answer as it must be, having been one in the half that was learnt from
makes it less likely in the other. Pure.
"""

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from earwise.types import Example

DEVIATIONS = 3.0
MIN_QUESTIONS = 20  # fewer tell nothing about bias
PRIOR = 2.0  # pseudo-counts that pull a rare option's rate to chance
FOLDS = 5
MIN_LEARNT = 100  # questions without which the classifier is not tried
MAX_LEARNT = 8000  # questions that the classifier is tried on, drawn by seed: an interval of 1.5 %
BUCKETS = 128  # of words, by hash
STEPS, RATE, DECAY = 120, 0.05, 1e-2

Scores = Callable[[Example], Sequence[float]]
Matrix = NDArray[np.float64]


def bias(examples: Iterable[Example], seed: int = 0) -> dict[str, dict[str, float]]:
    """How often listeners without ears are right.

    Args:
        examples: Those without choices or answer are passed over.
        seed: Decides the halves of the blind listener and the folds of the classifier; a group is never in two.
    Returns:
        Listener -> n, accuracy, chance (mean of 1/k), low and high (accuracy -/+ three deviations under chance).
        `position` is the best of all fixed positions; `options` is there from 100 questions on.
    """
    asked = with_options(examples)
    widest = max((len(example.choices) for example in asked), default=0)
    positions = [rate(asked, _at(position)) for position in range(widest)]
    listeners = {"position": max(positions, key=lambda found: found["low"] - found["chance"])} if positions else {}
    listeners |= {"longest": rate(asked, _length(1)), "shortest": rate(asked, _length(-1))} if asked else {}
    halves = _folds(asked, seed, 2)
    if all(halves):
        first, second = halves
        known: dict[int, Sequence[float]] = {}
        for learnt, tried in ((first, second), (second, first)):
            score = blind(learnt)
            known |= {id(example): score(example) for example in tried}
        listeners["blind"] = rate(asked, lambda example: known[id(example)])
    tried = asked if len(asked) <= MAX_LEARNT else random.Random(seed).sample(asked, MAX_LEARNT)
    if len(tried) >= MIN_LEARNT and all(_folds(tried, seed, FOLDS)):
        scores = cross_validated(tried, seed)
        listeners["options"] = rate(tried, lambda example: scores[id(example)])
    return listeners


def blind(examples: Iterable[Example]) -> Scores:
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


def with_options(examples: Iterable[Example]) -> list[Example]:
    """Those that have both choices and an answer."""
    return [example for example in examples if example.choices and example.answer]


def rate(examples: Sequence[Example], score: Scores) -> dict[str, float]:
    """Expected accuracy of taking the option with the best score; ties are shared out, so their order is nothing."""
    hits = 0.0
    for example in examples:
        scores = score(example)
        highest = max(scores)
        best = [option for option, value in zip(example.choices, scores, strict=True) if value >= highest - 1e-12]
        hits += (example.answer[0] in best) / len(best)
    rates = [1 / len(example.choices) for example in examples]
    chance = sum(rates) / len(rates)
    spread = DEVIATIONS * math.sqrt(sum(one * (1 - one) for one in rates)) / len(rates)
    accuracy = hits / len(rates)
    return {
        "n": len(rates),
        "accuracy": accuracy,
        "chance": chance,
        "low": accuracy - spread,
        "high": accuracy + spread,
    }


def is_biased(found: dict[str, float]) -> bool:
    """True if chance is below the interval of a listener's accuracy, and there are questions enough to say so."""
    return found["n"] >= MIN_QUESTIONS and found["low"] > found["chance"]


def cross_validated(examples: Sequence[Example], seed: int) -> dict[int, list[float]]:
    """Scores of the classifier for each example (by `id()` of the object), each learnt from the other folds."""
    folds = _folds(examples, seed, FOLDS)
    shapes = {id(example): features(example) for example in examples}
    scores: dict[int, list[float]] = {}
    for held in range(FOLDS):
        learnt = [example for number, fold in enumerate(folds) if number != held for example in fold]
        weights = _fit([shapes[id(example)] for example in learnt], [_right(example) for example in learnt])
        # rounded: options that look the same must tie, whatever the order of the sum
        scores |= {id(example): (shapes[id(example)] @ weights).round(6).tolist() for example in folds[held]}
    return scores


def features(example: Example) -> Matrix:
    """What can be seen of each option `(options, features)` without hearing: lengths, marks, likeness, words."""
    words = [re.findall(r"\w+", option.lower()) for option in example.choices]
    asked = set(re.findall(r"\w+", example.question.lower()))
    lengths = np.array([len(option) for option in example.choices], dtype=np.float64)
    rows = []
    for number, (option, said) in enumerate(zip(example.choices, words, strict=True)):
        others = {word for place, other in enumerate(words) if place != number for word in other}
        shape = [
            lengths[number] / max(lengths.mean(), 1),
            len(said) / 10,
            float(lengths[number] == lengths.max()),
            float(lengths[number] == lengths.min()),
            float(any(mark.isdigit() for mark in option)),
            float(any(mark in ",;:.()" for mark in option)),
            float(option[:1].isupper()),
            len(asked.intersection(said)) / max(len(said), 1),
            len(others.intersection(said)) / max(len(said), 1),
        ]
        bag = np.zeros(BUCKETS)
        for word in set(said):
            bag[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % BUCKETS] += 1
        rows.append(np.concatenate([shape, bag]))
    found = np.stack(rows)
    centred: Matrix = found - found.mean(axis=0)
    return centred


def _fit(shapes: Sequence[Matrix], right: Sequence[int]) -> Matrix:
    """Weights of a conditional logit (softmax over the options of a question) with a pull to zero, by Adam."""
    widest = max(len(shape) for shape in shapes)
    stacked = np.zeros((len(shapes), widest, shapes[0].shape[1]), np.float32)
    absent = np.zeros((len(shapes), widest), np.float32)
    for number, shape in enumerate(shapes):
        stacked[number, : len(shape)] = shape
        absent[number, len(shape) :] = -np.inf
    wanted = np.zeros_like(absent)
    wanted[np.arange(len(shapes)), right] = 1
    weights = np.zeros(stacked.shape[2])
    slope, curve = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, STEPS + 1):
        scores = stacked @ weights.astype(np.float32) + absent
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        gradient = np.tensordot(likely - wanted, stacked, axes=2) / len(shapes) + DECAY * weights
        slope, curve = 0.9 * slope + 0.1 * gradient, 0.999 * curve + 0.001 * gradient**2
        weights = weights - RATE * (slope / (1 - 0.9**step)) / (np.sqrt(curve / (1 - 0.999**step)) + 1e-8)
    return weights


def _right(example: Example) -> int:
    return example.choices.index(example.answer[0])


def _at(position: int) -> Scores:
    return lambda example: [float(number == position) for number in range(len(example.choices))]


def _length(sign: int) -> Scores:
    return lambda example: [float(sign * len(option)) for option in example.choices]


def _folds(examples: Sequence[Example], seed: int, count: int) -> list[list[Example]]:
    """Parts of about as many groups each; a group is in one."""
    groups = sorted({example.group or example.id for example in examples})
    random.Random(seed).shuffle(groups)
    part = {group: min(count * place // max(len(groups), 1), count - 1) for place, group in enumerate(groups)}
    folds: list[list[Example]] = [[] for _ in range(count)]
    for example in examples:
        folds[part[example.group or example.id]].append(example)
    return folds
