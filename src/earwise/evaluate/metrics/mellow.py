"""How Mellow's authors read answers: a letter before `)`, yes/no by containment, entailment by class.

For comparing with their figures only; `metrics/mmau.py` is what earwise scores by. Verdicts and sums are theirs, traps
included: an answer without a readable letter counts as option a, "no" is found in "not" and "know". What an unreadable
answer is worth stands beside it as `unreadable`, the share of answers that got a letter as a gift.

Deviations: 1. a class without items has the accuracy None where the official program crashes; 2. nothing to count is an
error that says so.

Source: papers/mellow.md section 5; soham97/mellow branch `training` @c8204d8, metrics/.
"""

from collections.abc import Mapping, Sequence

from earwise.errors import ScoringError

LETTERS = ("a", "b", "c", "d")
CLASSES = {"a": "Entailment", "b": "Neutral", "c": "Contradiction"}
TASKS = ("sound", "music", "speech")
DIFFICULTIES = ("easy", "hard", "medium")


def head(text: str) -> str:
    """What stands before the first `)`, lower case: where a letter is looked for.

    >>> head("B) a dog (barking)"), head("the answer is b) a dog")
    ('b', 'the answer is b')
    """
    return text.split(")")[0].lower()


def option_letter(response: str) -> str:
    """The letter that the official reading takes, `a` where there is none to read.

    >>> [option_letter(text) for text in ("B) a dog", "c", "(c) rain", "")]
    ['b', 'c', 'a', 'a']
    """
    return head(response) if head(response) in LETTERS else "a"


def multiple_choice(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Percent of predictions whose letter is the answer's; answers look like `c) a dog`.

    Raises:
        ScoringError: if there is nothing to count, or the lists differ in length.
    """
    pairs = _paired(predictions, answers)
    accuracy = 100 * sum(option_letter(said) == head(answer) for said, answer in pairs) / len(pairs)
    return {"ACC": accuracy, "main": accuracy, "unreadable": 100 * _unreadable(predictions)}


def binary(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Percent of predictions that contain the answer (`yes` or `no`), letters compared in lower case.

    Raises:
        ScoringError: if there is nothing to count, or the lists differ in length.
    """
    pairs = _paired(predictions, answers)
    accuracy = 100 * sum(answer.lower() in said.lower() for said, answer in pairs) / len(pairs)
    return {"ACC": accuracy, "main": accuracy}


def mmau(predictions: Sequence[str], answers: Sequence[str], metadata: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Percent of predictions that begin as the answer does, by task, by difficulty and in all; no default letter here.

    Args:
        predictions: What was said.
        answers: `c) a dog`.
        metadata: `task` and `difficulty` of each item.
    Returns:
        Each of `TASKS` and `DIFFICULTIES` (0 for one without items), `total` and `main` (the same).
    Raises:
        ScoringError: if there is nothing to count, the lists differ in length, or a group is not known.
    """
    pairs = _paired(predictions, answers)
    if len(metadata) != len(pairs):
        raise ScoringError(f"{len(pairs)} predictions but metadata of {len(metadata)}; give one of each per item")
    verdicts: dict[str, list[bool]] = {group: [] for group in (*TASKS, *DIFFICULTIES)}
    for number, ((said, answer), groups) in enumerate(zip(pairs, metadata, strict=True), 1):
        for key, known in (("task", TASKS), ("difficulty", DIFFICULTIES)):
            if groups.get(key) not in known:
                raise ScoringError(f"item {number}: {key} {groups.get(key)!r} is none of {', '.join(known)}")
            verdicts[groups[key]].append(head(said) == head(answer))
    scores = {group: sum(right) / len(right) * 100 if right else 0.0 for group, right in verdicts.items()}
    total = sum(sum(verdicts[task]) for task in TASKS) / len(pairs) * 100
    return scores | {"total": total, "main": total}


def entailment(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float | None]:
    """Accuracy, macro precision, recall and F1 over the letters met on either side, and accuracy by class, as shares.

    The classes are named in the scorer's order (a: entailment, b: neutral, c: contradiction), which is not the order of
    the options in the data's description: read the data's key before quoting them.

    Raises:
        ScoringError: if there is nothing to count, or the lists differ in length.
    """
    pairs = [(option_letter(said), option_letter(answer)) for said, answer in _paired(predictions, answers)]
    met = sorted({letter for pair in pairs for letter in pair})
    hits = {letter: sum(said == answer == letter for said, answer in pairs) for letter in met}
    said_as = {letter: sum(said == letter for said, _ in pairs) for letter in met}
    truly = {letter: sum(answer == letter for _, answer in pairs) for letter in LETTERS}
    accuracy = sum(hits.values()) / len(pairs)
    scores: dict[str, float | None] = {
        "ACC": accuracy,
        "Precision": _mean([_share(hits[letter], said_as[letter]) for letter in met]),
        "Recall": _mean([_share(hits[letter], truly[letter]) for letter in met]),
        "F1": _mean([2 * hits[letter] / (said_as[letter] + truly[letter]) for letter in met]),
        "main": accuracy,
        "unreadable": _unreadable(predictions),
    }
    for letter, name in CLASSES.items():
        scores[f"ACC_{name}"] = hits[letter] / truly[letter] if truly[letter] else None
    return scores


def _paired(predictions: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
    if len(predictions) != len(answers) or not answers:
        raise ScoringError(
            f"{len(predictions)} predictions for {len(answers)} answers; give one for each, at least one"
        )
    return list(zip(predictions, answers, strict=True))


def _unreadable(predictions: Sequence[str]) -> float:
    return sum(head(said) not in LETTERS for said in predictions) / len(predictions)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
