"""BLEU and chrF: tokenizers and values of Qwen2-Audio's program and of sacreBLEU, case for case."""

from importlib.util import find_spec

import pytest

from earwise.evaluation.metrics.translation import (
    corpus_bleu,
    corpus_chrf,
    sentence_bleu,
    target_language,
    tokenizer_of,
)

LANGUAGES = {"zh": "zh", "ja-mecab": "ja", "13a": "en"}
HAS_JAPANESE = find_spec("ipadic") is not None
"""Whether the extra `japanese` is installed; it is no part of the locks, since its dictionary comes without a wheel."""


def is_comparable(tokenizer: str) -> bool:
    return HAS_JAPANESE or tokenizer != "ja-mecab"


def test_qwen2_audio(golden) -> None:
    for case in golden("qwen2audio_bleu.json")["cases"]:
        if case["error"]:  # the official program cannot read a set name without an underscore
            continue
        language = target_language(case["source"])
        assert tokenizer_of(language) == case["tokenizer"]
        if not is_comparable(case["tokenizer"]):
            continue
        bleu, signature = corpus_bleu(case["references"], case["hypotheses"], language)
        assert bleu == pytest.approx(case["bleu"], abs=1e-6)
        assert f"tok:{case['tokenizer']}" in signature


def test_sacrebleu(golden) -> None:
    record = golden("translation_bleu_chrf.json")
    cases = record["cases"]
    for case in cases:
        if not is_comparable(case["tokenizer"]):
            continue
        language, official = LANGUAGES[case["tokenizer"]], case["sacrebleu_2_6_0"]
        reference, hypothesis = case["reference"], case["hypothesis"]
        bleu, _ = corpus_bleu([reference], [hypothesis], language)
        assert bleu == pytest.approx(official["corpus_of_one"]["bleu"], abs=1e-6)
        assert sentence_bleu(reference, hypothesis, language) == pytest.approx(official["sentence_bleu"], abs=1e-6)
        assert corpus_chrf([reference], [hypothesis]) == pytest.approx(official["chrf"], abs=1e-6)
        assert corpus_chrf([reference], [hypothesis], 2) == pytest.approx(official["chrf_pp"], abs=1e-6)
    for corpus in record["corpora"]:
        if not is_comparable(corpus["tokenizer"]):
            continue
        members = [cases[index] for index in corpus["case_indices"]]
        references, hypotheses = ([case[side] for case in members] for side in ("reference", "hypothesis"))
        bleu, _ = corpus_bleu(references, hypotheses, LANGUAGES[corpus["tokenizer"]])
        assert bleu == pytest.approx(corpus["sacrebleu_2_6_0"]["bleu"], abs=1e-6)
        assert bleu == pytest.approx(corpus["sacrebleu_1_5_1"]["bleu"], abs=1e-6)
        assert corpus_chrf(references, hypotheses) == pytest.approx(corpus["sacrebleu_2_6_0"]["chrf"], abs=1e-6)
