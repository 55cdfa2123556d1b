"""Scores and summaries equal those of the official MMAU and MMAR programs; our own rules hold on the same items."""

from collections.abc import Callable
from typing import Any

import pytest

from earwise.evaluation.metrics import mmau
from earwise.types import Example

Golden = Callable[[str], dict[str, Any]]
BENCHMARKS = [("benchmark-items/mmau_scorer.json", mmau.MMAU), ("benchmark-items/mmar_scorer.json", mmau.MMAR)]


@pytest.mark.parametrize(("name", "layout"), BENCHMARKS)
def test_official_scores(golden: Golden, name: str, layout: mmau.Layout) -> None:
    data = golden(name)
    assert data["cases"] and data["prediction_key"] == layout.prediction_key
    for case in data["cases"]:
        if case["matched_by_string_match"] is None:
            assert layout.prediction_key not in case
            continue
        prediction = case[layout.prediction_key]
        assert mmau.string_match(case["answer"], prediction, case["choices"]) == case["matched_by_string_match"], case
        example = Example("x", (), answer=(case["answer"],), choices=tuple(case["choices"]))
        assert mmau.score(example, prediction).values["official"] == float(case["matched_by_string_match"]), case


@pytest.mark.parametrize(("name", "layout"), BENCHMARKS)
def test_summaries(golden: Golden, name: str, layout: mmau.Layout) -> None:
    data = golden(name)
    assert data["summaries"]
    for expected in data["summaries"]:
        indices = range(len(data["cases"])) if expected["case_indices"] == "all" else expected["case_indices"]
        rows = [data["cases"][index] for index in indices]
        summary = mmau.official_summary(rows, layout, legacy_skip=True)
        assert summary == expected["parsed"]
        assert mmau.summary_lines(summary) == expected["stdout_lines"]

        honest = mmau.official_summary(rows, layout)
        missing = sum(layout.prediction_key not in row for row in rows)
        assert honest["total"]["count"] == len(rows) == summary["total"]["count"] + missing
        assert honest["no_prediction_count"] == missing
        assert not missing or honest["total"]["accuracy"] <= summary["total"]["accuracy"]


@pytest.mark.parametrize(("name", "layout"), BENCHMARKS)
def test_what_crashes_the_official_program_is_counted_wrong(golden: Golden, name: str, layout: mmau.Layout) -> None:
    data = golden(name)
    for crash in data["official_crash_behaviour"]:
        row = crash["sample"]
        summary = mmau.official_summary([row], layout)
        assert summary["total"]["count"] == 1
        if not isinstance(row.get(layout.prediction_key), str):
            assert summary["total"]["accuracy"] == 0.0
            example = Example("x", (), answer=(row["answer"],), choices=tuple(row["choices"]))
            score = mmau.score(example, row.get(layout.prediction_key))
            assert (
                score.values["official"],
                score.values["strict"],
                score.values["lenient"],
                score.status,
            ) == (0.0, 0.0, 0.0, "error")


@pytest.mark.parametrize(("name", "layout"), BENCHMARKS)
def test_gold_is_right_and_silence_is_unparsed(golden: Golden, name: str, layout: mmau.Layout) -> None:
    for case in golden(name)["cases"]:
        example = Example("x", (), answer=(case["answer"],), choices=tuple(case["choices"]))
        if case["answer"] not in case["choices"] or not case["answer"].strip():
            continue
        for output in (
            case["answer"],
            f"<answer>{case['answer']}</answer>",
            f"<think>Hm.</think>\n<answer> {case['answer']} </answer>",
        ):
            score = mmau.score(example, output)
            assert (score.values["strict"], score.status) == (1.0, "ok"), (case, output)
            readable = mmau.string_match(case["answer"], case["answer"], case["choices"])
            assert score.values["lenient"] == float(readable), (case, output)
        for output in ("", "  \n", "<answer></answer>"):
            score = mmau.score(example, output)
            assert (score.values["strict"], score.values["lenient"], score.status) == (0.0, 0.0, "unparsed"), (
                case,
                output,
            )


@pytest.mark.parametrize(("name", "layout"), BENCHMARKS)
def test_parsing_never_makes_a_wrong_answer_right(golden: Golden, name: str, layout: mmau.Layout) -> None:
    """What the files' makers call wrong, refused or empty stays wrong after parsing."""
    wrong = {"wrong", "answer_is_wrong", "answer_tags_wrong", "paren_text_wrong", "refusal", "idk", "empty", "newline"}
    for case in golden(name)["cases"]:
        if case["variant"] in wrong and layout.prediction_key in case:
            example = Example("x", (), answer=(case["answer"],), choices=tuple(case["choices"]))
            score = mmau.score(example, case[layout.prediction_key])
            assert score.values["official"] == 1.0 or score.values["lenient"] == 0.0, (case, score)
