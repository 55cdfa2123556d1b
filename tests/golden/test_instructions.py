"""MMAU-Pro's rules about the form of an answer: verdicts of the official program, case for case."""

import pytest

from earwise.errors import ConfigError, DataError
from earwise.evaluation.metrics.instructions.english import sentences
from earwise.evaluation.metrics.instructions.mmau_pro import follows_instruction


def has_sentence_model() -> bool:
    """Whether nltk and its model for English sentences are here; both are optional."""
    try:
        return sentences("One. Two.") == 2
    except ConfigError:
        return False


def test_mmaupro(golden) -> None:
    counts_sentences = has_sentence_model()
    num_compared = 0
    for case in golden("mmaupro_scorer.json")["cases"]:
        name, response, kwargs = case["task_identifier"], case["response"], case["kwargs"]
        if "Sentences" in name and not counts_sentences:
            continue
        num_compared += 1
        prompt = case.get("prompt_transcription", "")
        if case["pass"] is None and case["error"] == "TypeError":
            with pytest.raises(DataError, match="kwargs"):
                follows_instruction(name, response, kwargs, prompt)
        else:
            assert follows_instruction(name, response, kwargs, prompt) == case["pass"], case
    assert num_compared
