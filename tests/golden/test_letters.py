"""AIR-Bench (foundation), MMSU and MuChoMusic: letters and verdicts of the official programs, case for case."""

import pytest

from earwise.evaluation.metrics.letters import (
    choice_verdict,
    first_or_second_last,
    lettered_choices,
    muchomusic_option,
    muchomusic_verdict,
)
from earwise.evaluation.tasks import muchomusic


@pytest.mark.parametrize("name", ["airbench_foundation_scorer", "mmsu_scorer"])
def test_lettered_verdicts(golden, name: str) -> None:
    for case in golden(f"{name}.json")["cases"]:
        item = case["item"]
        response = item.get("response")
        letter = first_or_second_last(response) if isinstance(response, str) else None
        assert letter == case["letter_used"], item
        verdict = choice_verdict(lettered_choices(item), item.get("answer_gt"), response)
        assert verdict == (case["verdict"] == "correct"), item


def test_muchomusic(golden) -> None:
    for case in golden("muchomusic_scorer.json")["cases"]:
        index = muchomusic_option(case["model_output"], case["answers"])
        assert index == case["parsed_index"], case
        assert muchomusic_verdict(index, case["answer_orders"].index(0)) == case["verdict"], case


def test_what_the_official_programs_leave_out_is_counted(golden) -> None:
    record = golden("airbench_foundation_scorer.json")
    dropped = [case for case in record["cases"] if case["verdict"] == "fail"]
    for case in dropped:
        item = case["item"]
        assert choice_verdict(lettered_choices(item), item["answer_gt"], item["response"]) is False


def test_mmsu_summed_up(golden) -> None:
    """The program's accuracy is over what it does not drop."""
    record = golden("mmsu_scorer.json")
    for aggregate in record["aggregates"]:
        if aggregate["result"]["error"]:
            continue
        cases = [record["cases"][index] for index in aggregate["case_indices"]]
        counted = [case["verdict"] == "correct" for case in cases if case["verdict"] != "dropped"]
        ours = [
            choice_verdict(lettered_choices(case["item"]), case["item"].get("answer_gt"), case["item"].get("response"))
            for case in cases
        ]
        assert len(counted) == aggregate["result"]["total_count"] and sum(ours) == sum(counted)
        if counted:
            assert sum(ours) / len(counted) == pytest.approx(aggregate["result"]["overall_accuracy"], abs=5e-5)


def test_muchomusic_summed_up(golden) -> None:
    record = golden("muchomusic_scorer.json")
    for aggregate in record["aggregates"]:
        official = aggregate["result"]
        if official["error"]:
            continue
        rows = []
        for index in aggregate["case_indices"]:
            case = record["cases"][index]
            option = muchomusic_option(case["model_output"], case["answers"])
            correct = muchomusic_verdict(option, case["answer_orders"].index(0)) == "correct"
            kinds = [kind for kind in muchomusic.KINDS if case.get(kind)]
            rows.append({
                "task": ", ".join(kinds), "scores": {"official": float(correct)}, "output": case["model_output"],
                "choices": case["answers"],
            })  # fmt: skip
        metrics = muchomusic.aggregate(rows)
        assert metrics["official"]["accuracy"] == pytest.approx(official["overall"]["accuracy"])
        assert metrics["unanswered"]["accuracy"] == pytest.approx(official["overall"]["unanswered_rate"])
        for kind in muchomusic.KINDS:
            if official[kind].get("total_questions"):
                assert metrics[kind]["accuracy"] == pytest.approx(official[kind]["accuracy"])
                assert metrics[kind]["n"] == official[kind]["total_questions"]
