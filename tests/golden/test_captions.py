"""Caption metrics: tokens and values of the COCO tool kit, case for case and for whole corpora."""

import numpy as np
import pytest

from earwise.evaluation.metrics.caption_tokens import caption_tokens
from earwise.evaluation.metrics.captions import bleu, cider_d, rouge_l
from earwise.evaluation.metrics.java.meteor import added_up, meteor
from earwise.evaluation.metrics.java.programs import METEOR_FILES, find_programs, meteor_counts


def corpus_scores(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    rouge = [rouge_l(hypothesis, item) for hypothesis, item in zip(hypotheses, references, strict=True)]
    cider = cider_d(hypotheses, references)
    scores = {f"Bleu_{order}": value for order, value in enumerate(bleu(hypotheses, references), 1)}
    return scores | {"ROUGE_L": sum(rouge) / len(rouge), "CIDEr": sum(cider) / len(cider)}


def check(scores: dict[str, float], official: dict[str, float]) -> None:
    for name, value in scores.items():
        assert value == pytest.approx(official[name], rel=1e-9, abs=1e-15), name


def test_tokens(golden) -> None:
    for case in golden("caption_metrics.json")["cases"]:
        assert caption_tokens(case["hypothesis"]) == case["hypothesis_tokens"]
        assert [caption_tokens(reference) for reference in case["references"]] == case["reference_tokens"]


@pytest.mark.parametrize("num_references", [1, 5])
def test_items(golden, num_references: int) -> None:
    cases = golden("caption_metrics.json")["cases"]
    hypotheses = [case["hypothesis_tokens"] for case in cases]
    references = [case["reference_tokens"][:num_references] for case in cases]
    suffix = "s" if num_references > 1 else ""
    for place, (case, cider) in enumerate(zip(cases, cider_d(hypotheses, references), strict=True)):
        scores = corpus_scores([hypotheses[place]], [references[place]]) | {"CIDEr": cider}
        check(scores, case[f"scores_{num_references}_reference{suffix}"])


def test_corpora(golden) -> None:
    record = golden("caption_metrics.json")
    for corpus in record["corpora"]:
        members = [record["cases"][index] for index in corpus["case_indices"]]
        hypotheses = [case["hypothesis_tokens"] for case in members]
        references = [case["reference_tokens"][: corpus["references"]] for case in members]
        check(corpus_scores(hypotheses, references), corpus["scores"])


def test_empty_texts(golden) -> None:
    for case in golden("caption_metrics.json")["special_behaviour"]:
        if case["corpus"]:
            hypotheses = [tokens[0] for tokens in case["hypothesis_tokens"]]
            check(corpus_scores(hypotheses, case["reference_tokens"]), case["corpus"])


def test_meteor_from_its_statistics(golden) -> None:
    """Of each caption, and of corpora, whose value is that of the added statistics."""
    record = golden("meteor_statistics.json")
    statistics = added_up(np.array(record["statistics"]))
    assert meteor(statistics) == pytest.approx(np.array(record["values"]), abs=1e-12)
    for corpus in record["corpora"]:
        members = statistics[corpus["indices"]]
        assert float(meteor(members.sum(axis=0))) == pytest.approx(corpus["value"], abs=1e-12), corpus["name"]


def test_meteor_by_its_program(golden) -> None:
    programs = find_programs()
    if reason := programs.missing(METEOR_FILES):
        pytest.skip(reason)
    cases = golden("caption_metrics.json")["cases"]
    hypotheses, references = zip(
        *((case["hypothesis_tokens"], case["reference_tokens"]) for case in cases), strict=True
    )
    values = meteor(meteor_counts(programs, hypotheses, references))
    official = [case["scores_5_references"]["METEOR"] for case in cases]
    assert values == pytest.approx(np.array(official), abs=1e-12)
