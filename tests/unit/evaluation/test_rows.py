"""Fields of a row that are computed from the completion, and the groups by which rows are broken down."""

import math

import pytest

from earwise.evaluation.rows import answer_confidence
from earwise.evaluation.summary import is_group
from earwise.types import Completion


@pytest.mark.parametrize(
    ("logprobs", "reasoning_tokens", "confidence"),
    [
        ((-1.0, -0.5), None, math.exp(-1.5)),
        ((-1.0, -0.5), 0, math.exp(-1.5)),
        ((-9.0, -1.0, -0.5), 1, math.exp(-1.5)),
        ((-1.0, -0.5), 2, None),
        ((), None, None),
        ((1e-9,), 0, 1.0),
    ],
    ids=["whole", "no-reasoning", "after-reasoning", "no-answer", "no-logprobs", "rounding"],
)
def test_confidence_is_the_probability_of_the_answer_alone(
    logprobs: tuple[float, ...], reasoning_tokens: int | None, confidence: float | None
) -> None:
    completion = Completion("dog", tuple(range(len(logprobs))), logprobs, reasoning_tokens=reasoning_tokens)
    assert answer_confidence(completion) == (None if confidence is None else pytest.approx(confidence))


def test_languages_are_a_group_only_where_there_are_several() -> None:
    german, english = {"language": "de", "task": ""}, {"language": "en", "task": ""}
    assert is_group("language", [german, english]) and not is_group("language", [german, german])
    assert not is_group("task", [german]) and is_group("task", [german, {"task": "speech"}])
