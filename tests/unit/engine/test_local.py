"""The local engine: compared with transformers' generate, with the plain forward pass, and with the exact distribution
of short sequences."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from builders import hf_copy, hf_inputs, hf_logprobs, max_abs, tiny_qwen2_audio, tone, user_question
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.kv_cache import StepLayout, TreeCache
from earwise.engine.local import LocalEngine
from earwise.errors import AudioError
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy
from earwise.types import Audio, Text, Turn

SYSTEM_TURN = Turn("system", (Text("Hear."),))
SHORT_TURNS = (SYSTEM_TURN, *user_question("What?"))


def make_prompts(count: int) -> list[Prompt]:
    """Prompts of different lengths with one clip each; every third has two."""
    prompts = []
    for number in range(count):
        clips = 2 if number % 3 == 2 else 1
        waveforms = tuple(tone(0.1 + 0.13 * number, 200 + 90 * (number + clip), number) for clip in range(clips))
        prompts.append(Prompt((SYSTEM_TURN, *user_question("What" + "?" * number, clips)), waveforms, f"p{number}"))
    return prompts


def prompt_path(model: Qwen2Audio, prompt: Prompt) -> TokenPath:
    """The token path of a prompt."""
    return conversation_path(
        model, prompt.turns, range(len(prompt.waveforms)), [len(wave) for wave in prompt.waveforms], generate=True
    )


def with_many_end_tokens(model: Qwen2Audio, interval: int) -> Qwen2Audio:
    """Make every `interval`-th token end a completion, so that branches end at different lengths."""
    model.eos_ids = (2, *range(8, 262, interval))
    return model


def without_tokens(model: Qwen2Audio, tokens: list[int]) -> Qwen2Audio:
    """Make a model never sample these tokens."""
    suppressed = torch.zeros(model.module.lm_head.out_features, dtype=torch.bool)
    suppressed[tokens] = True
    model.module.lm_head.register_forward_hook(lambda _m, _i, logits: logits.masked_fill(suppressed, -1e9))
    return model


@pytest.mark.parametrize("trim", [True, False])
def test_greedy_equals_generate(trim: bool) -> None:
    model = with_many_end_tokens(tiny_qwen2_audio(seed=11, trim=trim), 40)
    prompts = make_prompts(4)
    completions = LocalEngine(model).generate(prompts, SamplingParams(max_new_tokens=12))
    module = hf_copy(model)
    lengths = set()
    for prompt, (completion,) in zip(prompts, completions, strict=True):
        inputs = hf_inputs(prompt_path(model, prompt), dict(enumerate(prompt.waveforms)))
        reference = module.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=list(model.eos_ids), pad_token_id=0
        )
        assert completion.token_ids == tuple(reference[0, inputs["input_ids"].shape[1] :].tolist())
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] in model.eos_ids else "length")
        lengths.add(len(completion.token_ids))
    assert len(lengths) > 1, "all completions have the same length, so ends are not tested"


@pytest.mark.parametrize("sliding_window", [None, 20])
def test_samples_equal_the_plain_forward_whatever_the_batch(sliding_window: int | None) -> None:
    """Many branches, uneven ends, trees that finish and are dropped, a cache that outgrows its first allocation."""
    # transformers' class reads a sampled placeholder as audio; ours does not, so it must not be sampled here.
    model = with_many_end_tokens(without_tokens(tiny_qwen2_audio(seed=12, sliding_window=sliding_window), [3]), 25)
    prompts = make_prompts(5)
    sampling_params = SamplingParams(max_new_tokens=30, temperature=1.3, seed=5)
    together = LocalEngine(model, batch_size=16).generate(prompts, sampling_params, 6)
    in_pairs = LocalEngine(model, batch_size=2).generate(prompts, sampling_params, 6)
    alone = [LocalEngine(model).generate([prompt], sampling_params, 6)[0] for prompt in prompts]
    lengths = Counter(len(completion.token_ids) for group in together for completion in group)
    assert len(lengths) > 8 and min(lengths) < 6 and max(lengths) > 20
    for other_groups in (in_pairs, alone):
        for group, other_group in zip(together, other_groups, strict=True):
            assert [first.token_ids for first in group] == [second.token_ids for second in other_group]
            pairs = zip(group, other_group, strict=True)
            assert (
                max_abs([torch.tensor(first.logprobs) - torch.tensor(second.logprobs) for first, second in pairs])
                < 1e-5
            )
    reference = hf_copy(model)
    with torch.no_grad():
        for prompt, group in zip(prompts, together, strict=True):
            for completion in group:
                path = prompt_path(model, prompt) + completion_path(completion.token_ids)
                expected = hf_logprobs(reference, path, dict(enumerate(prompt.waveforms)))
                assert max_abs([expected - torch.tensor(completion.logprobs)]) < 1e-5
                ended = completion.token_ids[-1] in model.eos_ids
                assert completion.finish_reason == ("stop" if ended else "length")
                assert ended or len(completion.token_ids) == 30
                assert not set(completion.token_ids[:-1]) & set(model.eos_ids)
                text_ids = completion.token_ids[: len(completion.token_ids) - ended]
                assert completion.text == model.tokenizer.decode(text_ids)


def test_the_policy_computes_the_log_probabilities_that_sampling_reported() -> None:
    """The policy's forward on packed trees agrees with the engine; both use the same cached encoder states."""
    model = tiny_qwen2_audio(seed=13)
    prompts = make_prompts(3)
    engine = LocalEngine(model)
    groups = engine.generate(prompts, SamplingParams(max_new_tokens=6, temperature=0.7, seed=1), 8)
    waveforms, trees = {}, []
    for prompt, group in zip(prompts, groups, strict=True):
        clips = range(len(waveforms), len(waveforms) + len(prompt.waveforms))
        waveforms |= dict(zip(clips, prompt.waveforms, strict=True))
        lengths = [len(waveform) for waveform in prompt.waveforms]
        path = conversation_path(model, prompt.turns, clips, lengths, generate=True)
        trees.append([path + completion_path(completion.token_ids) for completion in group])
    (micro_batch,) = build_micro_batches(model, engine.encoder_cache, trees, waveforms, 10**6)
    model.module.model.multi_modal_projector.requires_grad_(True)
    logprobs = Policy(model)(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
    sampled = [completion.logprobs for group in groups for completion in group]
    differences = [logprobs[row, : len(values)] - torch.tensor(values) for row, values in enumerate(sampled)]
    assert max_abs(differences) < 1e-5
    # The engine encoded the clips in inference mode, and yet a connector can be trained on the cached states.
    logprobs.sum().backward()
    assert model.module.model.multi_modal_projector.linear.weight.grad.abs().sum() > 0


def p_value(observed: list[float], expected: list[float]) -> float:
    """The p-value of Pearson's chi-square test of observed against expected counts."""
    observed_counts, expected_counts = (torch.tensor(counts, dtype=torch.float64) for counts in (observed, expected))
    possible = expected_counts > 0
    assert not observed_counts[~possible].any()
    statistic = ((observed_counts - expected_counts)[possible].square() / expected_counts[possible]).sum()
    return float(torch.special.gammaincc((possible.sum() - 1).double() / 2, statistic / 2))


ALLOWED_TOKENS = [2, 50, 60, 70, 80]


def model_of_five_tokens(seed: int) -> Qwen2Audio:
    """A model that can sample only five tokens, one of which ends the completion."""
    suppressed = [token for token in range(272) if token not in ALLOWED_TOKENS]
    return without_tokens(tiny_qwen2_audio(seed), suppressed)


def exact_distribution(
    model: Qwen2Audio, prompt: Prompt, length: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """Probability of every completion of at most `length` tokens, by the plain forward pass of one path at a time."""
    start = prompt_path(model, prompt)
    encoder_states = dict(enumerate(model.encode_audio(prompt.waveforms)))
    cached: dict[tuple[int, ...], dict[int, float]] = {}

    def next_token_probabilities(prefix: tuple[int, ...]) -> dict[int, float]:
        if prefix not in cached:
            paths = [start + completion_path((*prefix, token)) for token in ALLOWED_TOKENS]
            logprobs = Policy(model)(pack([build_tree(paths)]), encoder_states, {})[:, len(prefix)]
            cached[prefix] = dict(zip(ALLOWED_TOKENS, (logprobs / temperature).softmax(0).tolist(), strict=True))
        return cached[prefix]

    probabilities: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(ALLOWED_TOKENS, repeat=length):
        ends = (index + 1 for index, token in enumerate(tokens) if token in model.eos_ids)
        completion, probability = tokens[: next(ends, length)], 1.0
        if completion not in probabilities:
            for index, token in enumerate(completion):
                probability *= next_token_probabilities(completion[:index])[token]
            probabilities[completion] = probability
    return probabilities


@torch.no_grad()
def test_the_sampler_is_exact() -> None:
    """30,000 samples that share computation, against the exact distribution of all completions of three tokens; pairs
    of samples are independent."""
    model, n = model_of_five_tokens(21), 30_000
    prompt = Prompt(SHORT_TURNS, (tone(0.3),), "exact")
    engine = LocalEngine(model)
    (samples,) = engine.generate([prompt], SamplingParams(max_new_tokens=3, temperature=0.8, seed=3), n)
    assert engine.stats.computed_tokens < len(prompt_path(model, prompt).ids) + 1 + 4 + 16 + 1
    expected = exact_distribution(model, prompt, 3, 0.8)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5) and len(expected) == 1 + 4 + 16 * 5
    counts = Counter(sample.token_ids for sample in samples)
    assert counts.keys() <= expected.keys()
    observed = [counts[completion] for completion in expected]
    assert p_value(observed, [n * probability for probability in expected.values()]) > 1e-3
    # The same counts refute a neighbouring distribution, so the test can fail.
    neighbouring = exact_distribution(model, prompt, 3, 0.9)
    assert p_value(observed, [n * neighbouring[completion] for completion in expected]) < 1e-6
    first = torch.tensor([sample.token_ids[0] for sample in samples])
    joint = torch.stack(
        [((first[0::2] == a) & (first[1::2] == b)).sum() for a in ALLOWED_TOKENS for b in ALLOWED_TOKENS]
    )
    marginal = torch.tensor([(first == token).double().mean() for token in ALLOWED_TOKENS])
    assert p_value(joint.tolist(), (n // 2 * torch.outer(marginal, marginal)).flatten().tolist()) > 1e-3
    # Log-probabilities are those of temperature 1, whatever temperature the samples were drawn at.
    unscaled = exact_distribution(model, prompt, 3, 1.0)
    for completion in counts:
        sample = next(sample for sample in samples if sample.token_ids == completion)
        assert sum(sample.logprobs) == pytest.approx(torch.tensor(unscaled[completion]).log().item(), abs=1e-4)


@torch.no_grad()
def test_top_k_and_top_p_keep_the_likeliest_tokens() -> None:
    model = model_of_five_tokens(22)
    prompt = Prompt(SHORT_TURNS, (tone(0.3),), "top")
    probabilities = exact_distribution(model, prompt, 1, 1.0)
    ranked = sorted(probabilities, key=probabilities.get, reverse=True)
    two_likeliest = probabilities[ranked[0]] + probabilities[ranked[1]]
    for sampling_params, num_kept in (
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_k=2), 2),
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_p=two_likeliest - 1e-3), 2),
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_p=two_likeliest + 1e-3), 3),
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_p=1e-6), 1),
    ):
        (samples,) = LocalEngine(model).generate([prompt], sampling_params, 3000)
        counts = Counter(sample.token_ids for sample in samples)
        likeliest = ranked[:num_kept]
        assert set(counts) == set(likeliest)
        total = sum(probabilities[completion] for completion in likeliest)
        if num_kept > 1:
            expected = [3000 * probabilities[completion] / total for completion in likeliest]
            assert p_value([counts[completion] for completion in likeliest], expected) > 1e-3


def test_draws_depend_on_seed_and_key() -> None:
    engine = LocalEngine(tiny_qwen2_audio(seed=14))
    prompt = Prompt(SHORT_TURNS, (tone(0.2),), "one")

    def sampled_tokens(prompt: Prompt, seed: int) -> list[tuple[int, ...]]:
        sampling_params = SamplingParams(max_new_tokens=4, temperature=1.0, seed=seed)
        return [completion.token_ids for completion in engine.generate([prompt], sampling_params, 4)[0]]

    assert sampled_tokens(prompt, 0) == sampled_tokens(prompt, 0)
    assert sampled_tokens(prompt, 0) != sampled_tokens(prompt, 1)
    assert sampled_tokens(prompt, 0) != sampled_tokens(Prompt(prompt.turns, prompt.waveforms, "two"), 0)


def test_score_equals_the_sum_of_log_probabilities() -> None:
    model = tiny_qwen2_audio(seed=15)
    prompts = make_prompts(3)
    history = (
        *SHORT_TURNS, Turn("assistant", (Text("A cat."),)), Turn("user", (Audio("b.wav"), Text("And this?")))
    )  # fmt: skip
    prompts.append(Prompt(history, (tone(0.2), tone(0.4, 900)), "history"))
    prompts.append(Prompt((Turn("user", (Text("No sound."),)),), (), "silent"))
    continuations = [["dog", "a dog", "a door", ""], ["dog"], ["yes", "no"], ["yes", "no"], ["dog", "dog"]]
    scores = LocalEngine(model).score(prompts, continuations)
    reference = hf_copy(model)
    assert [len(row) for row in scores] == [len(row) for row in continuations]
    for prompt, texts, row in zip(prompts, continuations, scores, strict=True):
        for text, score in zip(texts, row, strict=True):
            with torch.no_grad():
                path = prompt_path(model, prompt) + answer_path(model, text)
                expected = hf_logprobs(reference, path, dict(enumerate(prompt.waveforms)))
            # Its bytes and the end token; the earlier answer in the history does not count.
            assert len(expected) == len(text) + 1
            assert score == pytest.approx(float(expected.sum()), abs=2e-5 * len(expected))
    assert LocalEngine(model).score([], []) == []


def test_questions_about_one_clip_share_its_audio_tokens() -> None:
    """They form one tree: results are those of separate calls, and the clip is computed once."""
    model = with_many_end_tokens(without_tokens(tiny_qwen2_audio(seed=19), [3]), 25)
    clip, other_clip = (tone(0.9, 300, 1),), (tone(0.4, 700, 2),)
    prompts = [Prompt((SYSTEM_TURN, *user_question("Who" + "?" * i)), clip, f"a{i}") for i in range(3)]
    prompts.append(Prompt((SYSTEM_TURN, *user_question("Who")), other_clip, "b"))
    prompts.append(Prompt((SYSTEM_TURN, *user_question("Both", 2)), clip + other_clip, "c"))
    prompts.append(Prompt(prompts[0].turns, (clip[0].copy(),), "twin"))  # an equal prompt with draws of its own
    sampling_params = SamplingParams(max_new_tokens=12, temperature=1.2, seed=4)
    engine = LocalEngine(model)
    together = engine.generate(prompts, sampling_params, 4)
    paths = [prompt_path(model, prompt) for prompt in prompts]
    separately = sum(computed_tokens(model, prompt, sampling_params) for prompt in prompts)
    num_audio_tokens = sum(clip_number >= 0 for clip_number in paths[0].clips)
    assert separately - engine.stats.computed_tokens > 4 * num_audio_tokens, "the clip was computed more than once"
    for prompt, group in zip(prompts, together, strict=True):
        (alone,) = LocalEngine(model).generate([prompt], sampling_params, 4)
        for first, second in zip(group, alone, strict=True):
            assert first.token_ids == second.token_ids
            assert max_abs([torch.tensor(first.logprobs) - torch.tensor(second.logprobs)]) < 1e-5
    continuations = [["dog", "cat"]] * len(prompts)
    scores_alone = [LocalEngine(model).score([prompt], [["dog", "cat"]])[0] for prompt in prompts]
    assert np.allclose(engine.score(prompts, continuations), scores_alone, atol=2e-5)


def computed_tokens(model: Qwen2Audio, prompt: Prompt, sampling_params: SamplingParams) -> int:
    """Number of tokens computed for one prompt by itself."""
    engine = LocalEngine(model)
    engine.generate([prompt], sampling_params, 4)
    return engine.stats.computed_tokens


def test_stream_yields_what_generate_returns() -> None:
    engine = LocalEngine(tiny_qwen2_audio(seed=16))
    prompt = make_prompts(1)[0]
    sampling_params = SamplingParams(max_new_tokens=10)
    pieces = list(engine.stream(prompt, sampling_params))
    text = engine.generate([prompt], sampling_params)[0][0].text
    assert text.startswith("".join(pieces)) and len(pieces) > 1


def test_too_long_clips_are_rejected() -> None:
    engine = LocalEngine(tiny_qwen2_audio())
    for call in (
        lambda prompt: engine.generate([prompt], SamplingParams()),
        lambda prompt: engine.score([prompt], [["a"]]),
        lambda prompt: list(engine.stream(prompt, SamplingParams())),
    ):
        with pytest.raises(AudioError, match=r"clip of 2\.5 s is longer than the 2 s that tiny hears"):
            call(Prompt(SHORT_TURNS, (tone(2.5),)))
    assert engine.generate([], SamplingParams()) == []


def test_the_cache_drops_trees_and_grows() -> None:
    """Two trees are written slot by slot; one is dropped, the other outgrows its slots and still reads its first."""
    cache = TreeCache()
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 100, 1, 4, generator=generator) for _ in range(2))
    query = torch.randn(1, 1, 1, 4, generator=generator)

    def write_slot(sources: list[int], slot: int) -> torch.Tensor:
        """Write one slot of every tree in the cache, from these of the two key and value sequences."""
        count = len(sources)
        mask = torch.ones(count, 1, 1, slot + 1, dtype=torch.bool)
        query_index, slot_index = torch.zeros(count, dtype=torch.long), torch.full((count,), slot)
        cache.begin(StepLayout(torch.arange(count), query_index, slot_index, mask))
        new = [source[sources, slot].transpose(0, 1)[None] for source in (keys, values)]
        return cache(0, query.expand(1, 1, count, 4), *new, 0.5)

    for slot in range(3):
        write_slot([0, 1], slot)
    cache.select_trees(torch.tensor([1]))
    for slot in range(3, 100):
        out = write_slot([1], slot)
    weights = (keys[1, :, 0] @ query.flatten() * 0.5).softmax(0)
    assert max_abs([out.flatten() - weights @ values[1, :, 0]]) < 1e-6
