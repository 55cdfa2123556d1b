"""Figures over classes: macro precision, recall and F1, and the unweighted recall that emotion recognition reports."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Figures of one class, in [0, 1]."""

    precision: float
    recall: float
    f1: float
    support: int
    """Items whose gold answer is this class."""


def class_scores(gold: Sequence[str], predicted: Sequence[str | None]) -> dict[str, ClassScores]:
    """Precision, recall and F1 of every class that occurs among the gold answers or the predictions.

    Args:
        gold: The right class of each item.
        predicted: The class that was read from each output; None (unreadable) belongs to no class and is wrong.
    """
    scores = {}
    for name in sorted(set(gold) | {name for name in predicted if name is not None}):
        hits = sum(answer == guess == name for answer, guess in zip(gold, predicted, strict=True))
        support, guesses = sum(answer == name for answer in gold), sum(guess == name for guess in predicted)
        precision = hits / guesses if guesses else 0.0
        recall = hits / support if support else 0.0
        f1 = 2 * hits / (support + guesses)
        scores[name] = ClassScores(precision, recall, f1, support)
    return scores


def macro_f1(scores: dict[str, ClassScores]) -> float:
    """Mean F1 over all classes, as scikit-learn averages them."""
    return sum(score.f1 for score in scores.values()) / len(scores)


def unweighted_recall(scores: dict[str, ClassScores]) -> float:
    """Mean recall over the classes that occur among the gold answers."""
    recalls = [score.recall for score in scores.values() if score.support]
    return sum(recalls) / len(recalls)
