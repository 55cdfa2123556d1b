"""Class figures equal scikit-learn's, as measured through Mellow's official program."""

import pytest

from earwise.evaluation.metrics.classification import class_scores, macro_f1, unweighted_recall


def test_entailment_sets(golden) -> None:
    record = golden("mellow_entailment.json")
    for entailment_set in record["sets"]:
        if "F1" not in (entailment_set.get("official") or {}):
            continue
        members = [record["cases"][index] for index in entailment_set["case_indices"]]
        gold, predicted = ([case[name] for case in members] for name in ("answer_option", "option_read"))
        scores = class_scores(gold, predicted)
        assert scores.keys() == entailment_set["per_class"].keys()
        for name, official in entailment_set["per_class"].items():
            ours = scores[name]
            assert (ours.precision, ours.recall, ours.f1, ours.support) == pytest.approx(
                tuple(official[key] for key in ("precision", "recall", "f1", "support")), rel=1e-12
            )
        assert macro_f1(scores) == pytest.approx(entailment_set["official"]["F1"], rel=1e-12)


def test_an_unreadable_answer_is_wrong_and_no_class() -> None:
    scores = class_scores(["a", "b", "b"], ["a", None, "b"])
    assert scores.keys() == {"a", "b"} and unweighted_recall(scores) == pytest.approx((1 + 0.5) / 2)
