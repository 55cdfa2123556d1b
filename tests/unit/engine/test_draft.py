"""Guesses: what they are, and that nobody who samples can tell whether there were any."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from builders import ask, largest, sound, tiny_qwen2_audio
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import Growth, PartialCompletion
from earwise.engine.draft import Drafts, Guess
from earwise.engine.local import LocalEngine
from earwise.engine.rng import Draws, drawn


def test_what_followed_comes_again() -> None:
    drafts = Drafts([[1, 2, 3, 4, 5]])
    assert drafts.guess([(0, [9, 2, 3], 8)], 8) == [Guess(0, -1, 4, 1), Guess(0, 0, 5, 2)]
    assert drafts.guess([(0, [2, 3], 8)], 1) == [Guess(0, -1, 4, 1)]
    assert drafts.guess([(0, [2, 3], 1)], 8) == [Guess(0, -1, 4, 1)], "no deeper than may be said"
    assert drafts.guess([(0, [7], 8)], 8) == [] and drafts.guess([(0, [2, 3], 8)], 0) == []


def test_the_longest_context_counts() -> None:
    drafts = Drafts([[1, 2, 3, 8, 2, 4, 9, 2, 4]])
    assert drafts.guess([(0, [1, 2], 1)], 8) == [Guess(0, -1, 3, 1)], "after 1 2 came 3, though after 2 more often 4"
    assert [one.token for one in drafts.guess([(0, [2], 1)], 8)] == [4, 3]


def test_likelier_first_and_parents_before_their_children() -> None:
    drafts = Drafts([[], []])
    for before, token, samples in (([1], 2, 6), ([1], 3, 3), ([1, 2], 4, 6), ([1, 3], 5, 1)):
        drafts.learn(before, token, samples)
    # 2: 6/10, then 4: 6/7 of it; 3: 3/10, then 5: 1/2 of it.
    expected = [Guess(0, -1, 2, 1), Guess(0, -1, 3, 1), Guess(0, 0, 4, 2), Guess(0, 1, 5, 2)]
    assert drafts.guess([(0, [1], 9)], 9) == expected
    assert drafts.guess([(0, [1], 9)], 2) == [expected[0], replace(expected[2], parent=0)]
    both = drafts.guess([(0, [1], 9), (1, [1], 9)], 4)
    assert [(one.state, one.token) for one in both] == [(0, 2), (1, 2), (0, 4), (1, 4)]


def test_ends_are_not_guessed_and_prompts_are_not_mixed() -> None:
    drafts = Drafts([[1, 2, 3], [1, 7]], ends=[3])
    assert [one.token for one in drafts.guess([(0, [1], 5)], 9)] == [2]
    assert [one.token for one in drafts.guess([(1, [1], 5)], 9)] == [7]
    drafts.learn([1], 9, 10)
    assert {one.token for one in drafts.guess([(1, [1], 5)], 9)} >= {9}, "what is said counts for all"


def test_numbers_belong_to_a_sample_and_a_place() -> None:
    one, other = Draws(3, "a", 5), Draws(3, "a", 5)
    late = one.at(4, [1, 3])
    assert torch.equal(late, other.at(4, range(5))[[1, 3]]), "asked for in another order, and without the rest"
    assert not torch.equal(one.at(4, [1, 3]), one.at(5, [1, 3])) and torch.equal(one.at(4, [1, 3]), late)
    assert not torch.equal(one.at(0, range(5)), Draws(4, "a", 5).at(0, range(5)))


def test_inversion_by_hand() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.25]]).log()
    numbers = torch.tensor([[0.0, 0.49, 0.51, 0.74, 0.76, 0.999]], dtype=torch.float64)
    assert drawn(logprobs, numbers, SamplingParams(temperature=1.0)).tolist() == [[0, 0, 1, 1, 2, 2]]
    assert drawn(logprobs, numbers, SamplingParams(temperature=1.0, top_k=1)).tolist() == [[0] * 6]


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("temperature", [0.0, 0.02, 0.4], ids=["greedy", "loops", "sampled"])
def test_the_same_is_said_in_fewer_passes(static: bool, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model at a low temperature repeats itself, so that most guesses come true; at a higher one few do."""
    model = tiny_qwen2_audio(seed=31)
    turns = ask("Which of these? one two one two")
    prompts = [Prompt(turns, (sound(0.2 + number / 5, 300, number),), f"d{number}") for number in range(3)]
    sampling_params, n = SamplingParams(max_new_tokens=40, temperature=temperature, seed=2), 1 if temperature == 0 else 4
    engine = LocalEngine(model, static=static)
    found = engine.generate(prompts, sampling_params, n)
    stats = engine.stats
    made = Growth.__init__

    def without(self: Growth, *args: object, **settings: object) -> None:
        made(self, *args, **settings | {"room": lambda states: states})

    monkeypatch.setattr(Growth, "__init__", without)
    plain = LocalEngine(model, static=static)
    expected = plain.generate(prompts, sampling_params, n)
    assert plain.stats.draft_tokens == 0 and plain.stats.forward_passes == 39
    assert stats.forward_passes < (33 if temperature == 0 else 39)
    assert (stats.computed_tokens, stats.sampled_tokens) == (plain.stats.computed_tokens, plain.stats.sampled_tokens), "a guess is no token"
    for group, others in zip(found, expected, strict=True):
        for one, other in zip(group, others, strict=True):
            assert one.token_ids == other.token_ids
            assert largest([torch.tensor(one.logprobs) - torch.tensor(other.logprobs)]) < 1e-5


def test_who_watches_sees_every_token() -> None:
    """However many a pass computes; and who is sent away stops there, in the middle of a pass too."""
    model = tiny_qwen2_audio(seed=31)
    prompt = Prompt(ask("Which?"), (sound(0.4),), "w")
    sampling_params = SamplingParams(max_new_tokens=40, temperature=0.02, seed=2)
    engine = LocalEngine(model, static=True)
    (free,) = engine.generate([prompt], sampling_params, 3)
    assert engine.stats.forward_passes < 39 and all(len(one.token_ids) == 40 for one in free)
    for cut in range(18, 34):
        seen: list[list[int]] = [[], [], []]

        def watch(said: Sequence[Sequence[PartialCompletion]], seen: list[list[int]] = seen, cut: int = cut) -> set[tuple[int, int]]:
            for one, lengths in zip(said[0], seen, strict=True):
                if not lengths or len(one.ids) > lengths[-1]:
                    lengths.append(len(one.ids))
            return {(0, 1)} if len(said[0][1].ids) >= cut else set()

        engine.generate_with_callback([prompt], sampling_params, 3, watch)
        assert seen == [list(range(1, 41)), list(range(1, cut + 1)), list(range(1, 41))]
