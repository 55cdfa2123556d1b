"""BLEU and chrF: tokenizers and values of Qwen2-Audio's program and of sacreBLEU, case for case."""

from importlib.util import find_spec

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from earwise.evaluation.aggregates.corpus import bleu, corpus_row
from earwise.evaluation.metrics.translation import (
    corpus_bleu,
    corpus_chrf,
    sentence_bleu,
    sentence_score,
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
        value, signature = corpus_bleu(case["references"], case["hypotheses"], language)
        assert value == pytest.approx(case["bleu"], abs=1e-6)
        assert f"tok:{case['tokenizer']}" in signature


def test_sacrebleu(golden) -> None:
    record = golden("translation_bleu_chrf.json")
    cases = record["cases"]
    for case in cases:
        if not is_comparable(case["tokenizer"]):
            continue
        language, official = LANGUAGES[case["tokenizer"]], case["sacrebleu_2_6_0"]
        reference, hypothesis = case["reference"], case["hypothesis"]
        value, _ = corpus_bleu([reference], [hypothesis], language)
        assert value == pytest.approx(official["corpus_of_one"]["bleu"], abs=1e-6)
        assert sentence_bleu(reference, hypothesis, language) == pytest.approx(official["sentence_bleu"], abs=1e-6)
        assert corpus_chrf([reference], [hypothesis]) == pytest.approx(official["chrf"], abs=1e-6)
        assert corpus_chrf([reference], [hypothesis], 2) == pytest.approx(official["chrf_pp"], abs=1e-6)
    for corpus in record["corpora"]:
        if not is_comparable(corpus["tokenizer"]):
            continue
        members = [cases[index] for index in corpus["case_indices"]]
        references, hypotheses = ([case[side] for case in members] for side in ("reference", "hypothesis"))
        value, _ = corpus_bleu(references, hypotheses, LANGUAGES[corpus["tokenizer"]])
        assert value == pytest.approx(corpus["sacrebleu_2_6_0"]["bleu"], abs=1e-6)
        assert value == pytest.approx(corpus["sacrebleu_1_5_1"]["bleu"], abs=1e-6)
        assert corpus_chrf(references, hypotheses) == pytest.approx(corpus["sacrebleu_2_6_0"]["chrf"], abs=1e-6)


def test_sums_of_sentences_are_the_corpus(golden) -> None:
    """BLEU of added counts is sacreBLEU's of the corpus, and its resampled values lie around it."""
    record = golden("translation_bleu_chrf.json")
    for corpus in record["corpora"]:
        if not is_comparable(corpus["tokenizer"]):
            continue
        members = [record["cases"][index] for index in corpus["case_indices"]]
        language = LANGUAGES[corpus["tokenizer"]]
        sentences = [sentence_score(case["reference"], case["hypothesis"], language)[1] for case in members]
        official = corpus["sacrebleu_2_6_0"]["bleu"]
        assert 100 * bleu(np.sum(sentences, axis=0)) == pytest.approx(official, abs=1e-6)
        row = corpus_row(sentences, [language] * len(sentences), "bleu")
        assert (
            100 * row["accuracy"] == pytest.approx(official, abs=1e-6) and row["low"] <= official / 100 <= row["high"]
        )


def test_resampling_is_that_of_sacrebleu() -> None:
    """The interval of corpora that are drawn from a corpus, against sacreBLEU's own bootstrap."""
    rng = np.random.default_rng(1)
    words = ["rain", "wind", "dog", "barks", "loudly", "here", "a", "the"]
    references = [" ".join(rng.choice(words, 12)) for _ in range(80)]
    hypotheses = [" ".join(word if rng.random() < 0.8 else "sun" for word in text.split()) for text in references]
    official = BLEU().corpus_score(hypotheses, [references], n_bootstrap=1000)
    pairs = zip(references, hypotheses, strict=True)
    row = corpus_row([sentence_score(*pair, "en")[1] for pair in pairs], ["en"] * len(references), "bleu")
    assert 50 * (row["low"] + row["high"]) == pytest.approx(official._mean, abs=0.5)
    assert 50 * (row["high"] - row["low"]) == pytest.approx(official._ci, rel=0.15)
