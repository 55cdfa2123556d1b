"""Readings of judges' texts, and the sums over them, of four official programs, case for case."""

import pytest

from earwise.evaluation.metrics.judgements import (
    AIRBENCH_GROUPS,
    airbench_groups,
    airbench_overall,
    is_majority_yes,
    middle_mean,
    read_airbench_pair,
    read_mmaupro_scores,
    read_rubric_points,
    read_voicebench_score,
)
from earwise.evaluation.metrics.mmau import string_match


def test_airbench_pairs(golden) -> None:
    for case in golden("airbench_chat_aggregation.json")["single_outputs"]:
        pair = read_airbench_pair(case["judge_output"])
        assert (pair is not None) == (case["counted_in_group"] == 1), case
        assert pair is None or pair == (case["first_score_added"], case["second_score_added"]), case


def test_airbench_groups(golden) -> None:
    for case in golden("airbench_chat_aggregation.json")["cases"]:
        if case["official"] is None or any(line["task_name"] not in AIRBENCH_GROUPS for line in case["lines"]):
            continue
        swapped = case["swapped_order_file"]
        judgements = [(line["task_name"], read_airbench_pair(line["gpt-score"])) for line in case["lines"]]
        groups = airbench_groups(judgements, swapped)
        assert groups.keys() == case["official"]["groups"].keys()
        for name, official in case["official"]["groups"].items():
            scores = groups[name]
            means = (scores.model_mean, scores.reference_mean)[:: 1 if swapped else -1]
            assert scores.count == official["sum"]
            assert scores.win_rate == pytest.approx(official["win_rate"], rel=1e-12)
            assert means == pytest.approx((official["first_score_avg"], official["second_score_avg"]), rel=1e-12)


def test_airbench_overall_needs_every_group() -> None:
    means = {"speech": 4.0, "sound": 5.0, "music": 6.0, "speech_and_sound": 1.0, "speech_and_music": 3.0}
    assert airbench_overall(means) == pytest.approx((4 + 5 + 6 + 2) / 4)
    assert airbench_overall({"speech": 4.0}) is None


def test_voicebench(golden) -> None:
    record = golden("voicebench_judge_reading.json")
    for case in record["cases"]:
        scores = [read_voicebench_score(text) for text in case["score_texts"]]
        assert (None in scores) == (case["error"] is not None), case
        if case["gpt"] is not None:
            assert sum(score or 0 for score in scores) / len(scores) == pytest.approx(case["gpt"], rel=1e-12), case
    for case in record["votes"]:
        assert is_majority_yes(case["texts"]) == case["counts_as_yes"], case


def test_mmaupro(golden) -> None:
    for case in golden("mmaupro_scorer.json")["judge_scores"]:
        assert read_mmaupro_scores(case["judge_text"]) == pytest.approx(case["scores"], rel=1e-12), case


def test_mmar_rubrics(golden) -> None:
    for case in golden("mmar_rubrics.json")["cases"]:
        if not string_match(case["answer"], case["answer_prediction"], case["choices"]):
            assert case["score"] in (0.0, None), case
            continue
        shares = [read_rubric_points(text, case["rubric"]) for text in case["judge_texts"]]
        readable = [share for share in shares if share is not None]
        if not case["evaluated"]:
            assert len(readable) < 5, case["note"]
            continue
        assert len(shares) == case["judge_calls"] and len(readable) == 5, case["note"]
        assert middle_mean(readable) == pytest.approx(case["score"], abs=1e-12), case["note"]
