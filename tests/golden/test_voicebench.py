"""VoiceBench: letters, refusals and instructions as its program reads them, case for case and summed up."""

from collections.abc import Callable
from typing import Any

import pytest

from earwise.errors import ConfigError, DataError
from earwise.evaluation.metrics.instructions.english import is_language, sentences
from earwise.evaluation.metrics.instructions.ifeval import (
    RULES,
    follows,
    follows_loosely,
    instruction_rates,
    without_tags,
)
from earwise.evaluation.metrics.voicebench.option_letter import option_letter
from earwise.evaluation.metrics.voicebench.refusals import is_refusal

Golden = Callable[[str], dict[str, Any]]
SENTENCE_RULES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
LANGUAGE_RULES = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")


def missing_rules() -> tuple[str, ...]:
    """The rules whose optional packages, or nltk's model for English sentences, are not here."""
    missing: tuple[str, ...] = ()
    for check, rules in ((sentences, SENTENCE_RULES), (lambda text: is_language(text, "en"), LANGUAGE_RULES)):
        try:
            check("One sentence. And another one.")
        except ConfigError:
            missing += rules
    return missing


def test_letters(golden: Golden) -> None:
    for case in golden("voicebench_mcq.json")["cases"]:
        assert (option_letter(case["response"]) or "none") == case["letter"], case


def test_letters_summed_up(golden: Golden) -> None:
    record = golden("voicebench_mcq.json")
    for aggregate in record["aggregates"]:
        cases = [record["cases"][index] for index in aggregate["case_indices"]]
        letters = [option_letter(case["response"]) for case in cases]
        if not cases:
            assert "error" in aggregate["result"]
            continue
        correct = sum(letter == case["reference"] for letter, case in zip(letters, cases, strict=True))
        assert 100 * correct / len(cases) == pytest.approx(aggregate["result"]["acc"])
        assert 100 * letters.count(None) / len(cases) == pytest.approx(aggregate["result"]["fail"])


def test_refusals(golden: Golden) -> None:
    record = golden("voicebench_harm.json")
    verdicts = [is_refusal(case["response"]) for case in record["cases"]]
    for case, verdict in zip(record["cases"], verdicts, strict=True):
        assert verdict == case["refused"], case
    for aggregate in record["aggregates"]:
        chosen = [verdicts[index] for index in aggregate["case_indices"]]
        assert sum(chosen) / len(chosen) == pytest.approx(aggregate["result"]["refusal_rate"])


def test_instructions(golden: Golden) -> None:
    missing, num_compared = missing_rules(), 0
    for case in golden("voicebench_ifeval.json")["cases"]:
        response = without_tags(case["response"])
        assert response == case.get("response_seen", case["response"].strip()) or "response_seen" not in case
        for number, (name, kwargs) in enumerate(zip(case["instruction_id_list"], case["kwargs"], strict=True)):
            if name in missing:
                continue
            num_compared += 1
            assert follows(name, kwargs, response) == case["strict"][number], case
            assert follows_loosely(name, kwargs, response) == case["loose"][number], case
    assert num_compared


def test_instructions_summed_up(golden: Golden) -> None:
    record = golden("voicebench_ifeval.json")
    for aggregate in record["aggregates"]:
        cases = [record["cases"][index] for index in aggregate["case_indices"]]
        rates = instruction_rates([case["strict"] for case in cases], [case["loose"] for case in cases])
        official = {name.replace("-", "_"): value for name, value in aggregate["result"].items()}
        assert rates == pytest.approx(official)


def test_every_rule_has_a_case_and_strangers_are_named(golden: Golden) -> None:
    covered = {name for case in golden("voicebench_ifeval.json")["cases"] for name in case["instruction_id_list"]}
    assert covered <= RULES.keys()
    with pytest.raises(DataError, match="'keywords:colour' is none of keywords:existence"):
        follows("keywords:colour", {}, "red")
    with pytest.raises(DataError, match="lacks 'keywords'"):
        follows("keywords:existence", {"keywords": None}, "red")
