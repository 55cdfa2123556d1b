"""Blind controls hide the clip: each item gets another clip with another answer, by seed, or a clear refusal."""

import numpy as np
import pytest

from earwise.errors import ConfigError
from earwise.evaluation import controls
from earwise.types import Audio, Example, Text, Turn


def items(answers: list[str], clips: list[str] | None = None) -> list[Example]:
    clips = clips or [f"{number}.wav" for number in range(len(answers))]
    return [
        Example(str(k), (Turn("user", (Audio(clip), Text("?"))),), answer=(answer,))
        for k, (answer, clip) in enumerate(zip(answers, clips, strict=True))
    ]


@pytest.mark.parametrize("answers", ["abcd" * 5, "ab" * 10, "aaaaabbbccd", "ab", "aaabbb"])
def test_shuffled_is_a_derangement_with_other_answers(answers: str) -> None:
    examples = items(list(answers))
    for seed in range(20):
        lenders = controls.partners(examples, seed)
        assert sorted(lenders) == list(range(len(examples)))
        assert all(answers[item] != answers[lender] for item, lender in enumerate(lenders))


def test_same_seed_same_partners_and_other_seed_others() -> None:
    examples = items(list("abcdefgh" * 4))
    assert controls.partners(examples, 1) == controls.partners(examples, 1) != controls.partners(examples, 2)


def test_one_answer_in_the_majority_shares_the_lenders() -> None:
    examples = items(list("aaaaaab"))
    lenders = controls.partners(examples, 0)
    assert lenders[:6] == [6] * 6 and lenders[6] < 6


def test_questions_on_one_clip_never_lend_it_to_each_other() -> None:
    examples = items(list("abcdabcd"), ["x", "x", "y", "y", "z", "z", "w", "w"])
    for seed in range(20):
        for item, lender in enumerate(controls.partners(examples, seed)):
            assert examples[item].audio_paths != examples[lender].audio_paths


@pytest.mark.parametrize(("answers", "clips"), [(["a", "a"], None), (["a", "b"], ["x", "x"]), (["a"], None)])
def test_what_cannot_be_shuffled_is_refused(answers: list[str], clips: list[str] | None) -> None:
    with pytest.raises(ConfigError, match="two clips and two answers"):
        controls.partners(items(answers, clips), 0)


def test_an_item_without_audio_keeps_its_place() -> None:
    text = Example("t", (Turn("user", (Text("?"),)),), answer=("a",))
    assert controls.partners([*items(["a", "b"]), text], 0) == [1, 0, 2]


def test_silence_and_noise_say_nothing_about_the_clip() -> None:
    waveform = np.full(4000, 0.7, dtype=np.float32)
    assert not controls.blinded(waveform, "silence", 0).any()
    noise = controls.blinded(waveform, "noise", 3)
    assert noise.dtype == np.float32 and noise.shape == waveform.shape
    assert np.sqrt((noise**2).mean()) == pytest.approx(controls.NOISE_RMS, rel=0.05)
    assert np.array_equal(noise, controls.blinded(np.zeros_like(waveform), "noise", 3))
    assert not np.array_equal(noise, controls.blinded(waveform, "noise", 4))


def test_unknown_control_is_refused() -> None:
    with pytest.raises(ConfigError, match="'dark' is none of silence, noise, shuffled"):
        controls.check("dark")
    controls.check(None)
