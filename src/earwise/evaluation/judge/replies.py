"""Readings of a judge's reply that several tasks share; those of single benchmarks are in `metrics/judgements.py`."""

import json
import re
from contextlib import suppress

from earwise.answers import split_reasoning


def final_text(text: str) -> str:
    """A reply without the reasoning of a judge that thinks aloud."""
    return split_reasoning(text)[1].strip()


def read_json_score(text: str, low: float, high: float) -> float | None:
    """The `score` of the last JSON object in a reply; None if there is none on the scale.

    >>> read_json_score('{"reason": "fine", "score": 4}', 1, 5), read_json_score('{"score": 9}', 1, 5)
    (4.0, None)
    >>> read_json_score('<think>{"score": 1}</think> {"score": "5"}', 1, 5)
    5.0
    """
    scores = []
    for match in re.finditer(r"\{[^{}]*\}", final_text(text)):
        with suppress(ValueError, KeyError, TypeError):
            scores.append(json.loads(match[0])["score"])
    if not scores or isinstance(scores[-1], bool):
        return None
    try:
        score = float(scores[-1])
    except (TypeError, ValueError):
        return None
    return score if low <= score <= high else None
