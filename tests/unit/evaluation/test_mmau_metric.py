"""MMAU's scorer on items of our own, scored by hand; the official cases are in tests/golden/test_mmau.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwise.errors import ScoringError
from earwise.evaluation.metrics import mmau
from earwise.types import Example, Score

HORN = Example("x", (), answer=("car horn",), choices=("dog barking", "car horn", "car alarm", "rain"))
OPEN = Example("x", (), answer=("light rain", "drizzle"))


def values_and_status(score: Score) -> tuple[float, float, float, str]:
    return score.values["official"], score.values["strict"], score.values["lenient"], score.status


@pytest.mark.parametrize(
    ("answer", "prediction", "choices", "right"),
    [
        ("car horn", "Horn, car!", ("car horn", "rain"), True),
        ("car horn", "horn", ("car horn", "rain"), False),
        ("car horn", "car horn rain", ("car horn", "rain"), False),
        ("car horn", "a loud car horn", ("car horn", "rain"), True),
        ("car horn", "a loud car horn", ("car horn", "a dog"), False),
        ("car horn", "car horn car", ("car horn", "car alarm"), True),
        ("car horn", "car_horn", ("car horn",), False),
        ("car horn", "", ("car horn",), False),
        ("car horn", "?!", ("car horn",), False),
        ("dog", "DOG", ("Dog", "dog", "cat"), True),
        ("...", "...", ("...", "!!!"), False),
        ("...", "anything", ("...", "!!!"), True),
        ("no", "know", ("yes", "no"), False),
    ],
)
def test_string_match(answer: str, prediction: str, choices: tuple[str, ...], right: bool) -> None:
    assert mmau.string_match(answer, prediction, choices) is right


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("car horn", (1, 1, 1, "ok")),
        ("<answer>car horn</answer>", (1, 1, 1, "ok")),
        ("<answer>Car horn.</answer>", (1, 0, 1, "ok")),
        ("B", (0, 0, 1, "ok")),
        ("A", (0, 0, 0, "ok")),
        ("<think>Not a dog barking.</think><answer>car horn</answer>", (0, 1, 1, "ok")),
        ("horn of a car", (1, 0, 0, "unparsed")),
        ("rain", (0, 0, 0, "ok")),
        ("car horn or rain", (0, 0, 0, "ambiguous")),
        ("", (0, 0, 0, "unparsed")),
        ("I cannot tell.", (0, 0, 0, "unparsed")),
        (None, (0, 0, 0, "error")),
        (3, (0, 0, 0, "error")),
    ],
)
def test_score_with_options(output: object, expected: tuple[float, float, float, str]) -> None:
    score = mmau.score(HORN, output)
    assert values_and_status(score) == expected
    assert (score.answer is not None) == (score.status == "ok")
    assert bool(score.explanation) == (score.status != "ok")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("drizzle", (1, 1, 1, "ok")),
        ("Light rain.", (1, 0, 1, "ok")),
        ("<answer>a light rain falls</answer>", (0, 0, 1, "ok")),
        ("<think>drizzle</think>snow", (0, 0, 0, "ok")),
        ("drizzled", (0, 0, 0, "ok")),
        ("light, then rain", (0, 0, 0, "ok")),
        ("<answer>drizzle</answer><answer>snow</answer>", (0, 0, 0, "ambiguous")),
        (" ", (0, 0, 0, "unparsed")),
        (None, (0, 0, 0, "error")),
    ],
)
def test_score_of_open_answers(output: object, expected: tuple[float, float, float, str]) -> None:
    assert values_and_status(mmau.score(OPEN, output)) == expected


def test_unlabelled_items_are_read_but_not_scored() -> None:
    score = mmau.score(Example("x", (), choices=("dog", "cat")), "cat")
    assert values_and_status(score) == (0, 0, 0, "ok") and score.answer == "cat"


@given(st.text(max_size=40), st.booleans())
def test_never_raises(output: str, options: bool) -> None:
    score = mmau.score(HORN if options else OPEN, output)
    assert score.status in ("ok", "unparsed", "ambiguous")
    assert score.status == "ok" or score.values["lenient"] == 0.0


def row(task: str, prediction: object, **more: object) -> dict[str, object]:
    base = {"task": task, "difficulty": "easy", "sub-category": "s", "answer": "dog", "choices": ["dog", "cat"]}
    return {**base, "model_output": prediction, **more}


def test_summary_counts_what_is_missing() -> None:
    missing = row("music", "")
    del missing["model_output"]
    rows = [
        row("sound", "dog"),
        row("sound", "cat"),
        row("sound", "dog", **{"sub-category": "t"}),
        missing,
        row("music", None),
    ]
    summary = mmau.official_summary(rows)
    assert summary["total"] == {"accuracy": 40.0, "count": 5}
    assert summary["no_prediction_count"] == 1
    assert summary["groups"]["Task-wise Accuracy"] == {
        "sound": {"accuracy": 66.67, "count": 3},
        "music": {"accuracy": 0.0, "count": 2},
        "speech": {"accuracy": 0.0, "count": 0},
    }
    assert list(summary["groups"]["Sub-category-wise Accuracy"]) == ["s", "t"]
    legacy = mmau.official_summary(rows, legacy_skip=True)
    assert legacy["total"] == {"accuracy": 50.0, "count": 4} and legacy["no_prediction_count"] == 0


def test_summary_lines() -> None:
    lines = mmau.summary_lines(mmau.official_summary([row("sound", "dog"), row("alien", "cat")]))
    assert lines[:3] == ["*" * 30, "Task-wise Accuracy:", "sound : 100.00% over 1 samples"]
    assert "alien : 0.00% over 1 samples" in lines
    assert lines[-3:] == ["Total Accuracy: 50.00% over 2 samples", "*" * 30, "No prediction count: 0"]


def test_summary_refuses_what_it_cannot_count() -> None:
    row_without_prediction = row("sound", "")
    del row_without_prediction["model_output"]
    with pytest.raises(ScoringError, match="nothing to count"):
        mmau.official_summary([row_without_prediction], legacy_skip=True)
    with pytest.raises(ScoringError, match="row 1 has no modality"):
        mmau.official_summary([row("sound", "dog")], mmau.MMAR)
