"""AIR-Bench (foundation), MMSU and MuChoMusic: letters and verdicts of the official programs, case for case."""

import pytest

from earwise.evaluation.metrics.letters import (
    choice_verdict,
    first_or_second_last,
    lettered_choices,
    muchomusic_option,
    muchomusic_verdict,
)


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
