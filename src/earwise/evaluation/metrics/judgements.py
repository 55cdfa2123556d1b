"""Texts of a judge into numbers, as the official programs of four benchmarks read them, and their sums.

A judgement that cannot be read is None here: the caller asks again or counts it as missing, and says how many are
missing. No text is guessed at.

Sources: OFA-Sys/AIR-Bench@9832476 (chat), MatthewCYM/VoiceBench@5338154, sonalkum/MMAUPro@960e93a,
ddlBoJack/MMAR@3bce090 (rubrics); measured by running them (`tests/golden`).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AIRBENCH_GROUPS = {
    "speech_QA": "speech", "speech_dialogue_QA": "speech", "sound_QA": "sound", "sound_generation_QA": "sound",
    "music_QA": "music", "music_generation_analysis_QA": "music", "speech_and_sound_QA": "speech_and_sound",
    "speech_and_music_QA": "speech_and_music",
}  # fmt: skip
"""Group of each task name of AIR-Bench chat."""
MMAUPRO_CRITERIA = ("correctness", "relevance", "completeness", "clarity")
MMAUPRO_DEFAULT = 3.0
"""What MMAU-Pro's program takes for a score that it does not find."""

_DOUBLE_BRACKETS = re.compile(r"\[\[(\d+)\]\]")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


def read_airbench_pair(text: str) -> tuple[int, int] | None:
    """Two whole numbers of at most 10 with one blank between them; None for anything else.

    >>> read_airbench_pair(" 7 4 "), read_airbench_pair("7, 4"), read_airbench_pair("11 4")
    ((7, 4), None, None)
    """
    fields = text.replace("\n", "").strip().split(" ")
    try:
        first, second = map(int, fields)
    except ValueError:
        return None
    return (first, second) if max(first, second) <= 10 else None


@dataclass(frozen=True, slots=True)
class PairedScores:
    """Scores of one group of AIR-Bench chat under one order of the two answers."""

    count: int
    win_rate: float
    """Share of judgements in which the model's score is higher than the reference answer's."""
    reference_mean: float
    model_mean: float


def airbench_groups(judgements: Sequence[tuple[str, tuple[int, int] | None]], swapped: bool) -> dict[str, PairedScores]:
    """Means and win rate of each group of AIR-Bench chat.

    Args:
        judgements: Task name and what `read_airbench_pair` returned, for each item.
        swapped: Whether the model's answer stood first. Otherwise the reference answer did.
    Returns:
        The groups that have a readable judgement. Items of an unknown task name are left out.
    """
    scores: dict[str, list[tuple[int, int]]] = {}
    for task_name, pair in judgements:
        if pair is not None and task_name in AIRBENCH_GROUPS:
            scores.setdefault(AIRBENCH_GROUPS[task_name], []).append(pair[::-1] if swapped else pair)
    return {
        group: PairedScores(
            count=len(pairs),
            win_rate=sum(model > reference for reference, model in pairs) / len(pairs),
            reference_mean=sum(reference for reference, _ in pairs) / len(pairs),
            model_mean=sum(model for _, model in pairs) / len(pairs),
        )
        for group, pairs in scores.items()
    }


def airbench_overall(group_means: Mapping[str, float]) -> float | None:
    """Mean of speech, sound, music and mixed, where mixed is the mean of its two groups; None if a group is missing."""
    mixed = [group_means.get(group) for group in ("speech_and_sound", "speech_and_music")]
    single = [group_means.get(group) for group in ("speech", "sound", "music")]
    if any(value is None for value in (*mixed, *single)):
        return None
    return (sum(value or 0.0 for value in single) + sum(value or 0.0 for value in mixed) / 2) / 4


def read_voicebench_score(text: str) -> float | None:
    """A number that is the whole text, otherwise the first whole number in double brackets; None without either.

    >>> read_voicebench_score(" 4.5 "), read_voicebench_score("Rating: [[4]]"), read_voicebench_score("4/5")
    (4.5, 4.0, None)
    """
    try:
        return float(text)
    except ValueError:
        match = _DOUBLE_BRACKETS.search(text)
        return float(match[1]) if match else None


def is_majority_yes(texts: Sequence[str]) -> bool:
    """Whether the most common text, up to case, is "yes"; a tie is no."""
    counts = Counter(text.lower() for text in texts)
    return counts["yes"] > max((count for text, count in counts.items() if text != "yes"), default=0)


def read_mmaupro_scores(text: str) -> dict[str, float]:
    """The four criteria and `overall` of a judge of MMAU-Pro's open questions, each after its name and a colon.

    A missing score is 3; an overall score that is missing or 3 is the mean of the criteria, as in the official program.
    """
    scores = {}
    for name in MMAUPRO_CRITERIA:
        match = re.search(rf"{name}:\s*(\d+)", text, re.IGNORECASE)
        scores[name] = float(match[1]) if match else MMAUPRO_DEFAULT
    match = re.search(r"overall:\s*(\d+(?:\.\d+)?)", text, re.IGNORECASE)
    overall = float(match[1]) if match else MMAUPRO_DEFAULT
    mean = sum(scores.values()) / len(scores)
    return scores | {"overall": mean if overall == MMAUPRO_DEFAULT else overall}


def read_rubric_points(text: object, rubric: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of an MMAR rubric's points that a judge gives; None if the text cannot be read.

    Args:
        text: The judge's text: a JSON list, possibly in a code block, with a `score` for each point of the rubric, in
            its order. Each must be one of the point's `choices`.
        rubric: The item's rubric; each point has its allowed `choices`.
    """
    if not isinstance(text, str):
        return None
    fenced = _FENCE.search(text)
    try:
        points = json.loads(fenced[1] if fenced else text)
        given = [point["score"] for point in points]
    except (ValueError, TypeError, KeyError):
        return None
    allowed = [point["choices"] for point in rubric]
    if len(given) != len(allowed) or any(score not in choices for score, choices in zip(given, allowed, strict=True)):
        return None
    most = sum(max(choices) for choices in allowed)
    return float(sum(given)) / most if most else 0.0


def middle_mean(values: Sequence[float]) -> float:
    """Mean without the highest and the lowest value."""
    middle = sorted(values)[1:-1]
    return sum(middle) / len(middle)
