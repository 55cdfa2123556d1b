"""How Mellow's authors read answers: a letter before `)`, yes or no by containment, entailment by class.

For comparison with their figures, by way of the task `mellow` (`evaluation/tasks/mellow.py`); earwise's own scores are
those of `metrics/mmau.py`. Rules and sums are the released program's, traps included: an answer without a readable
letter counts as option a, and "no" is found in "not" and "know". `unreadable` stands beside the accuracy and gives the
share of answers that were read as option a for want of a letter.

Source: Mellow (arXiv:2503.08540), section 5; soham97/mellow, branch `training` @c8204d8, metrics/. Deviations: (1) a
class without items has the accuracy None, where the released program crashes; (2) empty input raises an error that says
so.
"""

from collections.abc import Mapping, Sequence

from earwise.errors import ScoringError

LETTERS = ("a", "b", "c", "d")
CLASSES = {"a": "Entailment", "b": "Neutral", "c": "Contradiction"}
"""Letter -> class, in the order of the released scorer."""
TASKS = ("sound", "music", "speech")
DIFFICULTIES = ("easy", "hard", "medium")
CAPTION_OPENING = "The audio 1 is "
"""Words that the released program cuts out of captions."""


def head(text: str) -> str:
    """The text before the first `)`, lower case: the place where a letter is looked for.

    >>> head("B) a dog (barking)"), head("the answer is b) a dog")
    ('b', 'the answer is b')
    """
    return text.split(")")[0].lower()


def has_letter(text: str) -> bool:
    """Whether a text begins with an option's letter, as far as the released program can see."""
    return head(text) in LETTERS


def option_letter(prediction: str) -> str:
    """The letter that the released program reads; `a` where it finds none.

    >>> [option_letter(text) for text in ("B) a dog", "c", "(c) rain", "")]
    ['b', 'c', 'a', 'a']
    """
    return head(prediction) if has_letter(prediction) else "a"


def letter_matches(prediction: str, answer: str) -> bool:
    """Whether the letter read from a prediction is that of an answer like `c) a dog`."""
    return option_letter(prediction) == head(answer)


def contains_answer(prediction: str, answer: str) -> bool:
    """Whether a prediction contains the answer (`yes` or `no`), compared in lower case."""
    return answer.lower() in prediction.lower()


def multiple_choice(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Percentage of predictions whose letter is the answer's; answers look like `c) a dog`.

    Raises:
        ScoringError: if the lists are empty or differ in length.
    """
    pairs = _paired(predictions, answers)
    accuracy = 100 * sum(letter_matches(prediction, answer) for prediction, answer in pairs) / len(pairs)
    return {"ACC": accuracy, "main": accuracy, "unreadable": 100 * _unreadable_share(predictions)}


def binary(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Percentage of predictions that contain the answer (`yes` or `no`).

    Raises:
        ScoringError: if the lists are empty or differ in length.
    """
    pairs = _paired(predictions, answers)
    accuracy = 100 * sum(contains_answer(prediction, answer) for prediction, answer in pairs) / len(pairs)
    return {"ACC": accuracy, "main": accuracy}


def mmau(predictions: Sequence[str], answers: Sequence[str], metadata: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Percentage of predictions that begin as the answer does, by task, by difficulty and in all.

    Unlike `multiple_choice`, the released program has no default letter here.

    Args:
        predictions: The model's outputs.
        answers: The right options, like `c) a dog`.
        metadata: `task` and `difficulty` of each item.
    Returns:
        Each of `TASKS` and `DIFFICULTIES` (0 where there are no items), `total` and `main` (the same value).
    Raises:
        ScoringError: if the lists are empty or differ in length, or a task or difficulty is not known.
    """
    pairs = _paired(predictions, answers)
    if len(metadata) != len(pairs):
        raise ScoringError(f"{len(pairs)} predictions but metadata of {len(metadata)}; give one of each per item")
    correct: dict[str, list[bool]] = {group: [] for group in (*TASKS, *DIFFICULTIES)}
    for number, ((prediction, answer), item) in enumerate(zip(pairs, metadata, strict=True), 1):
        for key, names in (("task", TASKS), ("difficulty", DIFFICULTIES)):
            if item.get(key) not in names:
                raise ScoringError(f"item {number}: {key} {item.get(key)!r} is none of {', '.join(names)}")
            correct[item[key]].append(head(prediction) == head(answer))
    scores = {group: sum(flags) / len(flags) * 100 if flags else 0.0 for group, flags in correct.items()}
    total = sum(sum(correct[task]) for task in TASKS) / len(pairs) * 100
    return scores | {"total": total, "main": total}


def entailment(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float | None]:
    """Accuracy, macro precision, recall and F1 over all letters that occur, and accuracy by class, as shares in [0, 1].

    The classes are named in the released scorer's order (a: entailment, b: neutral, c: contradiction), which is not the
    order of the options in the data's description: look up the data's own order before quoting them.

    Raises:
        ScoringError: if the lists are empty or differ in length.
    """
    pairs = [(option_letter(prediction), option_letter(answer)) for prediction, answer in _paired(predictions, answers)]
    letters = sorted({letter for pair in pairs for letter in pair})
    hits = {letter: sum(predicted == answer == letter for predicted, answer in pairs) for letter in letters}
    num_predicted = {letter: sum(predicted == letter for predicted, _ in pairs) for letter in letters}
    num_gold = {letter: sum(answer == letter for _, answer in pairs) for letter in LETTERS}
    accuracy = sum(hits.values()) / len(pairs)
    scores: dict[str, float | None] = {
        "ACC": accuracy,
        "Precision": _mean([_ratio(hits[letter], num_predicted[letter]) for letter in letters]),
        "Recall": _mean([_ratio(hits[letter], num_gold[letter]) for letter in letters]),
        "F1": _mean([2 * hits[letter] / (num_predicted[letter] + num_gold[letter]) for letter in letters]),
        "main": accuracy,
        "unreadable": _unreadable_share(predictions),
    }
    for letter, name in CLASSES.items():
        scores[f"ACC_{name}"] = hits[letter] / num_gold[letter] if num_gold[letter] else None
    return scores


def _paired(predictions: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
    if len(predictions) != len(answers) or not answers:
        raise ScoringError(
            f"{len(predictions)} predictions for {len(answers)} answers; give one for each, at least one"
        )
    return list(zip(predictions, answers, strict=True))


def _unreadable_share(predictions: Sequence[str]) -> float:
    return sum(not has_letter(prediction) for prediction in predictions) / len(predictions)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def caption_groups(
    files: Sequence[str], predictions: Sequence[str], references: Sequence[str]
) -> list[tuple[str, str, list[str]]]:
    """Which caption the released program scores against which references.

    Neighbouring rows with one clip are one item, and only the caption of the first of them is scored; rows of a clip
    that do not stand together become several items.

    Args:
        files: Clip of each row.
        predictions: Caption of each row.
        references: Reference of each row.
    Returns:
        Clip, scored caption and references of each item, in order.
    """
    groups: list[tuple[str, str, list[str]]] = []
    for file, prediction, reference in zip(files, predictions, references, strict=True):
        if not groups or groups[-1][0] != file:
            groups.append((file, prediction.replace(CAPTION_OPENING, ""), []))
        groups[-1][2].append(reference)
    return groups
