"""Readings of judges' texts, and the sums over them, of four official programs, case for case."""

from typing import Any

import pytest

from earwise.errors import ConfigError
from earwise.evaluation.metrics.instructions.english import sentences
from earwise.evaluation.metrics.instructions.mmau_pro import follows_instruction
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
from earwise.evaluation.tasks import mmar_rubrics, mmau_pro
from earwise.types import Example, Text, Turn


def has_sentence_model() -> bool:
    """Whether nltk's model for English sentences is here; it is optional."""
    try:
        return sentences("One. Two.") == 2
    except ConfigError:
        return False


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


def rubric_row(case: dict[str, Any]) -> dict[str, Any]:
    """A row of a run whose answer was read as the case says."""
    return {
        "id": "x", "permutation": 0, "status": "ok", "answer": case["answer_prediction"], "choices": case["choices"],
        "reasoning": case["thinking_prediction"],
    }  # fmt: skip


def rubric_scores(case: dict[str, Any]) -> dict[str, float] | None:
    """Scores of a case by the task; None if not all five readings can be read."""
    question = (Turn("user", (Text("Which sound?"),)),)
    example = Example("x", question, answer=(case["answer"],), meta={"rubric": case["rubric"]})
    row = rubric_row(case)
    requests = mmar_rubrics.requests(example, row)
    shares = [mmar_rubrics.JUDGING.read(example, "", text) for text in case["judge_texts"]]
    readable = [share for share in shares if share is not None][:5]
    if requests and len(readable) < 5:
        return None
    values = {request.part: share for request, share in zip(requests, readable, strict=False)}
    return mmar_rubrics.judge_scores(example, row, values)


def test_mmar_rubrics_task_and_summaries(golden) -> None:
    """The task's scores are the program's, item by item and summed up over what that program evaluates."""
    record = golden("mmar_rubrics.json")
    scores = [rubric_scores(case) for case in record["cases"]]
    for case, scored in zip(record["cases"], scores, strict=True):
        if case["evaluated"]:
            assert scored is not None and scored["rubrics"] == pytest.approx(case["score"] or 0.0, abs=1e-12), case
            assert scored["accuracy"] == float(case["correct"])
        else:
            assert scored is None
    for summary in record["summaries"]:
        evaluated = [scores[index] for index in summary["case_indices"] if record["cases"][index]["evaluated"]]
        official = summary["result"]
        assert len(evaluated) == official["total_samples"]
        mean = 100 * sum(scored["rubrics"] for scored in evaluated if scored) / len(evaluated)
        assert mean == pytest.approx(official["total_score"], abs=0.0051)


def test_mmaupro_overall(golden) -> None:
    """The mean over all items is the program's weighted figure; it drops items of closed categories without options."""
    for case in golden("mmaupro_scorer.json")["overall_results"]:
        rules = {row.get("task_identifier") or "" for row in case["rows"]}
        if any("Sentences" in rule for rule in rules) and not has_sentence_model():
            continue
        values: list[float] = []
        for row in case["rows"]:
            if row["category"] == mmau_pro.OPEN:
                score = read_mmaupro_scores(row["judge_text"])["overall"]
                values.append(mmau_pro.judge_scores(Example("x", ()), {}, {"open": score})["score"])
            elif row["category"] == mmau_pro.INSTRUCTION:
                # The program lets an empty output pass "at most 5 words"; the task does not.
                arguments = (row["task_identifier"], row["model_output"], row["kwargs"], row.get("question") or "")
                values.append(float(follows_instruction(*arguments)))
            elif row["choices"] and len(row["choices"]) > 1:
                example = Example("x", (), answer=(row["answer"],), choices=tuple(row["choices"]))
                values.append(mmau_pro.score(example, row["matched"]).values["score"])
        official = case["result"]
        assert sum(values) / len(values) == pytest.approx(official["overall_weighted_performance"], rel=1e-9), case
        assert len(values) == official["evaluated_samples"]
