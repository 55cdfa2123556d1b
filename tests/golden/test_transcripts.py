"""Word and character error rates: texts, units and rates of the official programs, case for case."""

import pytest

from earwise.evaluation.metrics.transcripts import (
    NEWER_CONTRACTIONS,
    count_errors,
    error_rate,
    remove_tags,
    units,
)


def check_case(language: str, reference: str, hypothesis: str, official: dict) -> None:
    for side, text in (("reference", reference), ("hypothesis", hypothesis)):
        assert remove_tags(text, language) == official[f"{side}_after_remove_sp"]
        assert units(text, language) == official[f"{side}_units"], text
    count = count_errors(reference, hypothesis, language)
    assert count.num_edits == official["edit_distance"]
    if official["wer_alone"] is not None:
        assert count.rate == pytest.approx(official["wer_alone"], rel=1e-12)


def test_qwen2_audio(golden) -> None:
    record = golden("qwen2audio_wer.json")
    cases = record["cases"]
    for case in cases:
        check_case(case["language"], case["reference_raw"], case["hypothesis_raw"], case)
    for corpus in record["corpora"]:
        members = [cases[index] for index in corpus["case_indices"]]
        texts = [[case[f"{side}_raw"] for case in members] for side in ("reference", "hypothesis")]
        assert error_rate(*texts, corpus["language"]) == pytest.approx(corpus["wer"], rel=1e-12)


def test_qwen2_audio_in_more_languages(golden) -> None:
    record = golden("asr_wer.json")
    cases = record["cases"]
    for case in cases:
        check_case(case["language"], case["reference"], case["hypothesis"], case["qwen2audio"])
    for corpus in record["corpora"]:
        members = [cases[index] for index in corpus["case_indices"]]
        texts = [[case[side] for case in members] for side in ("reference", "hypothesis")]
        if corpus["qwen2audio"]["wer"] is not None:
            rate = error_rate(*texts, corpus["language"])
            assert rate == pytest.approx(corpus["qwen2audio"]["wer"], rel=1e-12)


def test_whisper_reading_is_jiwer_on_normalised_text(golden) -> None:
    """Cases without tags, where the published normalisers and jiwer see the same text as we do."""
    num_compared = 0
    for case in golden("asr_wer.json")["cases"]:
        name = "english" if case["language"] == "en" else "basic"
        official = case["whisper_normalizer_and_jiwer"].get(name, {})
        texts = (case["reference"], case["hypothesis"])
        if (
            case["language"] not in ("en", "fr", "de", "es")
            or "wer" not in official
            or any("<" in text for text in texts)
        ):
            continue
        count = count_errors(*texts, case["language"], "whisper")
        num_edits = sum(official[kind] for kind in ("substitutions", "deletions", "insertions"))
        assert count.num_edits == num_edits, case
        num_compared += 1
    assert num_compared


def test_the_published_normaliser_still_has_the_contractions_that_the_copy_lacks() -> None:
    """If the package drops them, the two readings of English become one."""
    from whisper_normalizer.english import EnglishTextNormalizer

    assert set(NEWER_CONTRACTIONS) <= EnglishTextNormalizer().replacers.keys()
