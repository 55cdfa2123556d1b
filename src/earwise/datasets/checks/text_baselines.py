"""Text-only baselines: how often multiple-choice questions can be answered without the audio.

Used by `checks/check_examples.py`. There are five baselines. `position` always chooses the same position; `longest` and
`shortest` choose by the length of the options; `blind` learns from other questions which texts tend to be answers
(naive Bayes on the option, and on the option together with the question); `options` is a cross-validated classifier on
the shape and the words of the options. If each of n questions is answered at chance, 1/k, the standard deviation of the
accuracy is known: an accuracy more than three standard deviations above chance is a problem. Below chance is expected
on balanced data and ignored: if every class must be the answer equally often, a class that was the answer in the half
that the baseline learned from is the answer less often in the other half. All functions are pure.
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
MIN_QUESTIONS = 20  # too few questions are no evidence of bias
PRIOR = 2.0  # pseudo-counts that pull a rare option's rate to chance
FOLDS = 5
MIN_CLASSIFIER_QUESTIONS = 100  # with fewer questions the classifier is not used
MAX_CLASSIFIER_QUESTIONS = 8000  # of more questions this many are drawn: a confidence interval of 1.5 %
WORD_BUCKETS = 128  # hash buckets of the bag of words
STEPS, LEARNING_RATE, WEIGHT_DECAY = 120, 0.05, 1e-2

OptionScorer = Callable[[Example], Sequence[float]]
"""Function that returns a score for each option of an example; the option with the highest score is chosen."""
Matrix = NDArray[np.float64]


def bias(examples: Iterable[Example], seed: int = 0) -> dict[str, dict[str, float]]:
    """Accuracy of every text-only baseline.

    Args:
        examples: Examples; those without choices or answer are ignored.
        seed: Seed of the halves of the `blind` baseline and the folds of the `options` classifier. All questions of a
            group are in the same part.
    Returns:
        Baseline -> n, accuracy, chance (mean of 1/k), low and high (accuracy -/+ three standard deviations at chance).
        `position` is the best of all fixed positions; `options` is included from 100 questions on.
    """
    questions = with_options(examples)
    max_choices = max((len(example.choices) for example in questions), default=0)
    positions = [rate(questions, _prefer_position(position)) for position in range(max_choices)]
    baselines = {"position": max(positions, key=lambda score: score["low"] - score["chance"])} if positions else {}
    if questions:
        baselines |= {"longest": rate(questions, _prefer_long), "shortest": rate(questions, _prefer_short)}
    halves = _folds(questions, seed, 2)
    if all(halves):
        first, second = halves
        blind_scores: dict[int, Sequence[float]] = {}
        for train_half, test_half in ((first, second), (second, first)):
            scorer = learn_blind(train_half)
            blind_scores |= {id(example): scorer(example) for example in test_half}
        baselines["blind"] = rate(questions, lambda example: blind_scores[id(example)])
    sample = questions
    if len(questions) > MAX_CLASSIFIER_QUESTIONS:
        sample = random.Random(seed).sample(questions, MAX_CLASSIFIER_QUESTIONS)
    if len(sample) >= MIN_CLASSIFIER_QUESTIONS and all(_folds(sample, seed, FOLDS)):
        classifier_scores = cross_validated_scores(sample, seed)
        baselines["options"] = rate(sample, lambda example: classifier_scores[id(example)])
    return baselines


def learn_blind(examples: Iterable[Example]) -> OptionScorer:
    """Learn from the texts of examples which options tend to be the answer.

    Returns:
        Scorer whose score of an option is the log-odds of its text, plus the log-odds of its text and the question.
    """
    right, chance = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for example in examples:
        for option in example.choices:
            for key in (("", option), (example.question, option)):
                chance[key] += 1 / len(example.choices)  # type: ignore[assignment]
                right[key] += option == example.answer[0]

    def scorer(example: Example) -> list[float]:
        keys = [(("", option), (example.question, option)) for option in example.choices]
        return [sum(math.log((right[key] + PRIOR) / (chance[key] + PRIOR)) for key in pair) for pair in keys]

    return scorer


def with_options(examples: Iterable[Example]) -> list[Example]:
    """The examples that have both choices and an answer."""
    return [example for example in examples if example.choices and example.answer]


def rate(examples: Sequence[Example], scorer: OptionScorer) -> dict[str, float]:
    """Expected accuracy of choosing the option with the highest score, with its interval.

    Tied options share the credit, so that their order does not matter.

    Returns:
        n, accuracy, chance (mean of 1/k), low and high (accuracy -/+ three standard deviations at chance).
    """
    hits = 0.0
    for example in examples:
        scores = scorer(example)
        highest = max(scores)
        best = [option for option, value in zip(example.choices, scores, strict=True) if value >= highest - 1e-12]
        hits += (example.answer[0] in best) / len(best)
    return interval(hits / len(examples), examples)


def interval(accuracy: float, examples: Sequence[Example]) -> dict[str, float]:
    """The accuracy on multiple-choice questions with its chance level and its interval.

    Returns:
        n, accuracy, chance (mean of 1/k), low and high (accuracy -/+ three standard deviations at chance).
    """
    rates = [1 / len(example.choices) for example in examples]
    count = max(len(rates), 1)
    spread = DEVIATIONS * math.sqrt(sum(rate * (1 - rate) for rate in rates)) / count
    return {
        "n": len(rates),
        "accuracy": accuracy,
        "chance": sum(rates) / count,
        "low": accuracy - spread,
        "high": accuracy + spread,
    }


def is_biased(score: dict[str, float]) -> bool:
    """True if the interval of a baseline's accuracy is above chance, and there are enough questions to judge."""
    return score["n"] >= MIN_QUESTIONS and score["low"] > score["chance"]


def cross_validated_scores(examples: Sequence[Example], seed: int) -> dict[int, list[float]]:
    """Option scores of the classifier for each example, learned from the folds that the example is not in.

    Returns:
        `id()` of an example -> score of each of its options.
    """
    folds = _folds(examples, seed, FOLDS)
    option_features = {id(example): features(example) for example in examples}
    scores: dict[int, list[float]] = {}
    for test_fold in range(FOLDS):
        train = [example for number, fold in enumerate(folds) if number != test_fold for example in fold]
        weights = _fit([option_features[id(example)] for example in train], [_answer_index(row) for row in train])
        for example in folds[test_fold]:
            # rounded, so that options with equal features tie whatever the order of summation
            scores[id(example)] = (option_features[id(example)] @ weights).round(6).tolist()
    return scores


def features(example: Example) -> Matrix:
    """Features of the text of each option `(options, features)`: lengths, punctuation, overlaps and a bag of words."""
    words = [re.findall(r"\w+", option.lower()) for option in example.choices]
    question_words = set(re.findall(r"\w+", example.question.lower()))
    lengths = np.array([len(option) for option in example.choices], dtype=np.float64)
    rows = []
    for number, (option, option_words) in enumerate(zip(example.choices, words, strict=True)):
        other_words = {word for place, others in enumerate(words) if place != number for word in others}
        shape = [
            lengths[number] / max(lengths.mean(), 1),
            len(option_words) / 10,
            float(lengths[number] == lengths.max()),
            float(lengths[number] == lengths.min()),
            float(any(mark.isdigit() for mark in option)),
            float(any(mark in ",;:.()" for mark in option)),
            float(option[:1].isupper()),
            len(question_words.intersection(option_words)) / max(len(option_words), 1),
            len(other_words.intersection(option_words)) / max(len(option_words), 1),
        ]
        bag = np.zeros(WORD_BUCKETS)
        for word in set(option_words):
            bag[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % WORD_BUCKETS] += 1
        rows.append(np.concatenate([shape, bag]))
    stacked = np.stack(rows)
    centred: Matrix = stacked - stacked.mean(axis=0)
    return centred


def _fit(option_features: Sequence[Matrix], answers: Sequence[int]) -> Matrix:
    """Fit a conditional logit model (softmax over the options of a question) with weight decay, by Adam.

    Args:
        option_features: Features of the options of each question `(options, features)`.
        answers: Index of the right option of each question.
    Returns:
        Weights `(features,)`.
    """
    n_questions, max_choices = len(option_features), max(map(len, option_features))
    stacked = np.zeros((n_questions, max_choices, option_features[0].shape[1]), np.float32)
    padding = np.zeros((n_questions, max_choices), np.float32)
    for number, rows in enumerate(option_features):
        stacked[number, : len(rows)] = rows
        padding[number, len(rows) :] = -np.inf
    targets = np.zeros_like(padding)
    targets[np.arange(n_questions), answers] = 1
    weights = np.zeros(stacked.shape[2])
    first_moment, second_moment = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, STEPS + 1):
        scores = stacked @ weights.astype(np.float32) + padding
        probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        gradient = np.tensordot(probabilities - targets, stacked, axes=2) / n_questions + WEIGHT_DECAY * weights
        first_moment = 0.9 * first_moment + 0.1 * gradient
        second_moment = 0.999 * second_moment + 0.001 * gradient**2
        mean, variance = first_moment / (1 - 0.9**step), second_moment / (1 - 0.999**step)
        weights = weights - LEARNING_RATE * mean / (np.sqrt(variance) + 1e-8)
    return weights


def _answer_index(example: Example) -> int:
    return example.choices.index(example.answer[0])


def _prefer_position(position: int) -> OptionScorer:
    return lambda example: [float(number == position) for number in range(len(example.choices))]


def _prefer_long(example: Example) -> list[float]:
    return [float(len(option)) for option in example.choices]


def _prefer_short(example: Example) -> list[float]:
    return [float(-len(option)) for option in example.choices]


def _folds(examples: Sequence[Example], seed: int, count: int) -> list[list[Example]]:
    """Divide the examples into `count` parts with about equally many groups; a group is never divided."""
    groups = sorted({example.group or example.id for example in examples})
    random.Random(seed).shuffle(groups)
    part = {group: min(count * place // max(len(groups), 1), count - 1) for place, group in enumerate(groups)}
    folds: list[list[Example]] = [[] for _ in range(count)]
    for example in examples:
        folds[part[example.group or example.id]].append(example)
    return folds
