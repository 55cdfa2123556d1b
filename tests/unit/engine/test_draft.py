"""Draft tokens: which are proposed, and that they change the number of passes but nothing that is sampled."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from builders import max_abs, tiny_qwen2_audio, tone, user_question
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import DecodeLoop, PartialCompletion
from earwise.engine.local import LocalEngine
from earwise.engine.sampling.draft import DraftToken, NgramDrafter
from earwise.engine.sampling.rng import UniformDraws, sample_tokens


def test_a_token_that_followed_before_is_proposed_again() -> None:
    drafter = NgramDrafter([[1, 2, 3, 4, 5]])
    assert drafter.propose([(0, [9, 2, 3], 8)], 8) == [DraftToken(0, -1, 4, 1), DraftToken(0, 0, 5, 2)]
    assert drafter.propose([(0, [2, 3], 8)], 1) == [DraftToken(0, -1, 4, 1)]
    assert drafter.propose([(0, [2, 3], 1)], 8) == [DraftToken(0, -1, 4, 1)], "no deeper than the length limit allows"
    assert drafter.propose([(0, [7], 8)], 8) == [] and drafter.propose([(0, [2, 3], 8)], 0) == []


def test_the_longest_matching_context_decides() -> None:
    drafter = NgramDrafter([[1, 2, 3, 8, 2, 4, 9, 2, 4]])
    expected = [DraftToken(0, -1, 3, 1)]
    assert drafter.propose([(0, [1, 2], 1)], 8) == expected, "after 1 2 came 3, though after 2 more often 4"
    assert [draft.token for draft in drafter.propose([(0, [2], 1)], 8)] == [4, 3]


def test_likelier_tokens_come_first_and_parents_before_their_children() -> None:
    drafter = NgramDrafter([[], []])
    for context, token, samples in (([1], 2, 6), ([1], 3, 3), ([1, 2], 4, 6), ([1, 3], 5, 1)):
        drafter.update(context, token, samples)
    # 2: 6/10, then 4: 6/7 of it; 3: 3/10, then 5: 1/2 of it.
    expected = [DraftToken(0, -1, 2, 1), DraftToken(0, -1, 3, 1), DraftToken(0, 0, 4, 2), DraftToken(0, 1, 5, 2)]
    assert drafter.propose([(0, [1], 9)], 9) == expected
    assert drafter.propose([(0, [1], 9)], 2) == [expected[0], replace(expected[2], parent=0)]
    for_two_leaves = drafter.propose([(0, [1], 9), (1, [1], 9)], 4)
    assert [(draft.leaf, draft.token) for draft in for_two_leaves] == [(0, 2), (1, 2), (0, 4), (1, 4)]


def test_end_tokens_are_not_proposed_and_prompts_are_not_mixed() -> None:
    drafter = NgramDrafter([[1, 2, 3], [1, 7]], end_ids=[3])
    assert [draft.token for draft in drafter.propose([(0, [1], 5)], 9)] == [2]
    assert [draft.token for draft in drafter.propose([(1, [1], 5)], 9)] == [7]
    drafter.update([1], 9, 10)
    tokens = {draft.token for draft in drafter.propose([(1, [1], 5)], 9)}
    assert tokens >= {9}, "completions count for all prompts"


def test_random_numbers_belong_to_a_sample_and_a_position() -> None:
    first, second = UniformDraws(3, "a", 5), UniformDraws(3, "a", 5)
    late = first.numbers_at(4, [1, 3])
    assert torch.equal(late, second.numbers_at(4, range(5))[[1, 3]]), (
        "another order of calls, other samples beside them"
    )
    assert not torch.equal(first.numbers_at(4, [1, 3]), first.numbers_at(5, [1, 3])) and torch.equal(
        first.numbers_at(4, [1, 3]), late
    )
    assert not torch.equal(first.numbers_at(0, range(5)), UniformDraws(4, "a", 5).numbers_at(0, range(5)))


def test_inverse_transform_sampling_by_hand() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.25]]).log()
    uniforms = torch.tensor([[0.0, 0.49, 0.51, 0.74, 0.76, 0.999]], dtype=torch.float64)
    assert sample_tokens(logprobs, uniforms, SamplingParams(temperature=1.0)).tolist() == [[0, 0, 1, 1, 2, 2]]
    assert sample_tokens(logprobs, uniforms, SamplingParams(temperature=1.0, top_k=1)).tolist() == [[0] * 6]


@pytest.mark.parametrize("use_static_cache", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("temperature", [0.0, 0.02, 0.4], ids=["greedy", "repetitive", "varied"])
def test_drafts_give_the_same_completions_in_fewer_passes(
    use_static_cache: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model at a low temperature repeats itself, so most drafts are accepted; at a higher one few are."""
    model = tiny_qwen2_audio(seed=31)
    turns = user_question("Which of these? one two one two")
    prompts = [Prompt(turns, (tone(0.2 + number / 5, 300, number),), f"d{number}") for number in range(3)]
    sampling_params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=2)
    n = 1 if temperature == 0 else 4
    engine = LocalEngine(model, use_static_cache=use_static_cache)
    completions = engine.generate(prompts, sampling_params, n)
    stats = engine.stats
    original_init = DecodeLoop.__init__

    def init_without_drafts(self: DecodeLoop, *args: object, **options: object) -> None:
        original_init(self, *args, **options | {"row_capacity": lambda rows: rows})

    monkeypatch.setattr(DecodeLoop, "__init__", init_without_drafts)
    plain = LocalEngine(model, use_static_cache=use_static_cache)
    expected = plain.generate(prompts, sampling_params, n)
    assert plain.stats.draft_tokens == 0 and plain.stats.forward_passes == 39
    assert stats.forward_passes < (33 if temperature == 0 else 39)
    assert (stats.computed_tokens, stats.sampled_tokens) == (
        plain.stats.computed_tokens, plain.stats.sampled_tokens
    ), "rejected drafts are not counted as computed tokens"  # fmt: skip
    for group, expected_group in zip(completions, expected, strict=True):
        for completion, reference in zip(group, expected_group, strict=True):
            assert completion.token_ids == reference.token_ids
            assert max_abs([torch.tensor(completion.logprobs) - torch.tensor(reference.logprobs)]) < 1e-5


def test_the_callback_sees_every_token_and_stops_samples_within_a_pass() -> None:
    """It is called after every token however many a pass accepts, and a sample that it stops ends right there."""
    model = tiny_qwen2_audio(seed=31)
    prompt = Prompt(user_question("Which?"), (tone(0.4),), "w")
    sampling_params = SamplingParams(max_new_tokens=40, temperature=0.02, seed=2)
    engine = LocalEngine(model, use_static_cache=True)
    (unstopped,) = engine.generate([prompt], sampling_params, 3)
    assert engine.stats.forward_passes < 39 and all(len(completion.token_ids) == 40 for completion in unstopped)
    for limit in range(18, 34):
        lengths: list[list[int]] = [[], [], []]

        def stop_second(
            completions: Sequence[Sequence[PartialCompletion]],
            lengths: list[list[int]] = lengths,
            limit: int = limit,
        ) -> set[tuple[int, int]]:
            for completion, seen_lengths in zip(completions[0], lengths, strict=True):
                if not seen_lengths or len(completion.token_ids) > seen_lengths[-1]:
                    seen_lengths.append(len(completion.token_ids))
            return {(0, 1)} if len(completions[0][1].token_ids) >= limit else set()

        engine.generate_with_callback([prompt], sampling_params, 3, stop_second)
        assert lengths == [list(range(1, 41)), list(range(1, limit + 1)), list(range(1, 41))]
