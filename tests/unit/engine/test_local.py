"""The local engine: against transformers' generate, against the plain forward, and against the exact distribution of
short sequences.
"""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from builders import ask, largest, plain_copy, plain_inputs, plain_logprobs, sound, tiny_qwen2_audio
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.kv_cache import Step, TreeCache
from earwise.engine.local import LocalEngine
from earwise.errors import AudioError
from earwise.forest import build_tree, pack
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.train.batches import assemble
from earwise.train.policy import Policy
from earwise.types import Audio, Text, Turn

SHORT = (Turn("system", (Text("Hear."),)), *ask("What?"))


def prompts(count: int) -> list[Prompt]:
    """Prompts of different lengths: one sound each, every third has two."""
    out = []
    for number in range(count):
        clips = 2 if number % 3 == 2 else 1
        waveforms = tuple(sound(0.1 + 0.13 * number, 200 + 90 * (number + clip), number) for clip in range(clips))
        out.append(Prompt((SHORT[0], *ask("What" + "?" * number, clips)), waveforms, f"p{number}"))
    return out


def trunk(model: Qwen2Audio, prompt: Prompt):
    return conversation_path(
        model, prompt.turns, range(len(prompt.waveforms)), [len(wave) for wave in prompt.waveforms], generate=True
    )


def with_ends(model: Qwen2Audio, share: int) -> Qwen2Audio:
    """Every `share`-th token ends a completion, so that branches end unevenly."""
    model.eos_ids = (2, *range(8, 262, share))
    return model


def without(model: Qwen2Audio, tokens: list[int]) -> Qwen2Audio:
    """A model that never says these tokens."""
    barred = torch.zeros(model.module.lm_head.out_features, dtype=torch.bool)
    barred[tokens] = True
    model.module.lm_head.register_forward_hook(lambda _m, _i, scores: scores.masked_fill(barred, -1e9))
    return model


@pytest.mark.parametrize("trim", [True, False])
def test_greedy_equals_generate(trim: bool) -> None:
    model = with_ends(tiny_qwen2_audio(seed=11, trim=trim), 40)
    some = prompts(4)
    answers = LocalEngine(model).generate(some, SamplingParams(max_new_tokens=12))
    module = plain_copy(model)
    lengths = set()
    for prompt, (answer,) in zip(some, answers, strict=True):
        inputs = plain_inputs(trunk(model, prompt), dict(enumerate(prompt.waveforms)))
        said = module.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=list(model.eos_ids), pad_token_id=0
        )
        assert answer.token_ids == tuple(said[0, inputs["input_ids"].shape[1] :].tolist())
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] in model.eos_ids else "length")
        lengths.add(len(answer.token_ids))
    assert len(lengths) > 1, "all answers have the same length: nothing is tested about ends"


def test_samples_equal_the_plain_forward_whatever_the_batch() -> None:
    """Many branches, uneven ends, trees that finish and are dropped, a cache that outgrows its first allocation."""
    # transformers' class takes a placeholder that was sampled for a sound; ours does not, so it must not be said here.
    model = with_ends(without(tiny_qwen2_audio(seed=12), [3]), 25)
    some = prompts(5)
    sampling_params = SamplingParams(max_new_tokens=30, temperature=1.3, seed=5)
    together = LocalEngine(model, trees=16).generate(some, sampling_params, 6)
    apart = LocalEngine(model, trees=2).generate(some, sampling_params, 6)
    alone = [LocalEngine(model).generate([prompt], sampling_params, 6)[0] for prompt in some]
    lengths = Counter(len(one.token_ids) for group in together for one in group)
    assert len(lengths) > 8 and min(lengths) < 6 and max(lengths) > 20
    for groups in (apart, alone):
        for ours, theirs in zip(together, groups, strict=True):
            assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
            assert (
                largest(
                    [
                        torch.tensor(one.logprobs) - torch.tensor(two.logprobs)
                        for one, two in zip(ours, theirs, strict=True)
                    ]
                )
                < 1e-5
            )
    plain = plain_copy(model)
    with torch.no_grad():
        for prompt, group in zip(some, together, strict=True):
            for one in group:
                path = trunk(model, prompt) + completion_path(one.token_ids)
                assert (
                    largest([plain_logprobs(plain, path, dict(enumerate(prompt.waveforms))) - torch.tensor(one.logprobs)])
                    < 1e-5
                )
                ended = one.token_ids[-1] in model.eos_ids
                assert one.finish_reason == ("stop" if ended else "length") and (ended or len(one.token_ids) == 30)
                assert not set(one.token_ids[:-1]) & set(model.eos_ids)
                assert one.text == model.detokenize(one.token_ids[: len(one.token_ids) - ended])


def test_a_trainer_reads_the_same_log_probabilities() -> None:
    """What sampling reports is what the policy's forward on the packed tries gives, with the sounds heard once for
    both.
    """
    model = tiny_qwen2_audio(seed=13)
    some = prompts(3)
    engine = LocalEngine(model)
    groups = engine.generate(some, SamplingParams(max_new_tokens=6, temperature=0.7, seed=1), 8)
    waveforms, trees = {}, []
    for prompt, group in zip(some, groups, strict=True):
        numbers = range(len(waveforms), len(waveforms) + len(prompt.waveforms))
        waveforms |= dict(zip(numbers, prompt.waveforms, strict=True))
        start = conversation_path(model, prompt.turns, numbers, [len(wave) for wave in prompt.waveforms], generate=True)
        trees.append([start + completion_path(one.token_ids) for one in group])
    (micro,) = assemble(model, engine.encoder_cache, trees, waveforms, 10**6)
    model.module.model.multi_modal_projector.requires_grad_(True)
    logprobs = Policy(model)(micro.forest, micro.heard, micro.waveforms)
    sampled = [one.logprobs for group in groups for one in group]
    assert largest([logprobs[row, : len(one)] - torch.tensor(one) for row, one in enumerate(sampled)]) < 1e-5
    # Heard under inference mode by the engine, and yet a connector can be trained on it.
    logprobs.sum().backward()
    assert model.module.model.multi_modal_projector.linear.weight.grad.abs().sum() > 0


def p_value(observed: list[float], expected: list[float]) -> float:
    """Of Pearson's chi-square test."""
    o, e = torch.tensor(observed, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    keep = e > 0
    assert not o[~keep].any()
    statistic = ((o - e)[keep].square() / e[keep]).sum()
    return float(torch.special.gammaincc((keep.sum() - 1).double() / 2, statistic / 2))


def small_vocabulary(seed: int) -> Qwen2Audio:
    """Only five tokens can be said, one of them ends the completion."""
    return without(tiny_qwen2_audio(seed), [token for token in range(272) if token not in SAYABLE])


SAYABLE = [2, 50, 60, 70, 80]


def exact(model: Qwen2Audio, prompt: Prompt, length: int, temperature: float) -> dict[tuple[int, ...], float]:
    """Probability of every completion of at most `length` tokens, by the plain forward of one path at a time."""
    ends = set(model.eos_ids)
    start = trunk(model, prompt)
    heard = dict(enumerate(model.encode_audio(prompt.waveforms)))
    nexts: dict[tuple[int, ...], dict[int, float]] = {}

    def following(said: tuple[int, ...]) -> dict[int, float]:
        if said not in nexts:
            forest = pack([build_tree([start + completion_path((*said, token)) for token in SAYABLE])])
            last = Policy(model)(forest, heard, {})[:, len(said)]
            nexts[said] = dict(zip(SAYABLE, (last / temperature).softmax(0).tolist(), strict=True))
        return nexts[said]

    out: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(SAYABLE, repeat=length):
        cut = next((at + 1 for at, token in enumerate(tokens) if token in ends), length)
        said, probability = tokens[:cut], 1.0
        if said not in out:
            for at, token in enumerate(said):
                probability *= following(said[:at])[token]
            out[said] = probability
    return out


@torch.no_grad()
def test_the_sampler_is_exact() -> None:
    """30,000 samples that share states against the exact distribution of all sequences of three tokens; pairs of
    samples are independent.
    """
    model, n = small_vocabulary(21), 30_000
    prompt = Prompt(SHORT, (sound(0.3),), "exact")
    engine = LocalEngine(model)
    (samples,) = engine.generate([prompt], SamplingParams(max_new_tokens=3, temperature=0.8, seed=3), n)
    assert engine.stats.computed_tokens < len(trunk(model, prompt).ids) + 1 + 4 + 16 + 1
    expected = exact(model, prompt, 3, 0.8)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5) and len(expected) == 1 + 4 + 16 * 5
    counts = Counter(one.token_ids for one in samples)
    assert counts.keys() <= expected.keys()
    observed = [counts[said] for said in expected]
    assert p_value(observed, [n * share for share in expected.values()]) > 1e-3
    # The same counts refute a neighbouring distribution, so the test can fail.
    other = exact(model, prompt, 3, 0.9)
    assert p_value(observed, [n * other[said] for said in expected]) < 1e-6
    first = torch.tensor([one.token_ids[0] for one in samples])
    joint = torch.stack([((first[0::2] == a) & (first[1::2] == b)).sum() for a in SAYABLE for b in SAYABLE])
    share = torch.tensor([(first == a).double().mean() for a in SAYABLE])
    assert p_value(joint.tolist(), (n // 2 * torch.outer(share, share)).flatten().tolist()) > 1e-3
    # Log-probabilities are those of temperature 1, whatever the samples were drawn at.
    natural = exact(model, prompt, 3, 1.0)
    for said in counts:
        one = next(sample for sample in samples if sample.token_ids == said)
        assert sum(one.logprobs) == pytest.approx(torch.tensor(natural[said]).log().item(), abs=1e-4)


@torch.no_grad()
def test_top_k_and_top_p_keep_the_likeliest() -> None:
    model = small_vocabulary(22)
    prompt = Prompt(SHORT, (sound(0.3),), "top")
    shares = exact(model, prompt, 1, 1.0)
    ranked = sorted(shares, key=shares.get, reverse=True)
    reach = shares[ranked[0]] + shares[ranked[1]]
    for sampling_params, kept in (
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_k=2), 2),
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_p=reach - 1e-3), 2),
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_p=reach + 1e-3), 3),
        (SamplingParams(max_new_tokens=1, temperature=1.0, top_p=1e-6), 1),
    ):
        (samples,) = LocalEngine(model).generate([prompt], sampling_params, 3000)
        counts = Counter(one.token_ids for one in samples)
        assert set(counts) == set(ranked[:kept])
        total = sum(shares[said] for said in ranked[:kept])
        if kept > 1:
            assert (
                p_value(
                    [counts[said] for said in ranked[:kept]], [3000 * shares[said] / total for said in ranked[:kept]]
                )
                > 1e-3
            )


def test_seeds_and_keys() -> None:
    engine = LocalEngine(tiny_qwen2_audio(seed=14))
    one = Prompt(SHORT, (sound(0.2),), "one")

    def said(prompt: Prompt, seed: int) -> list[tuple[int, ...]]:
        return [
            sample.token_ids
            for sample in engine.generate([prompt], SamplingParams(max_new_tokens=4, temperature=1.0, seed=seed), 4)[0]
        ]

    assert said(one, 0) == said(one, 0)
    assert said(one, 0) != said(one, 1)
    assert said(one, 0) != said(Prompt(one.turns, one.waveforms, "two"), 0)


def test_score_equals_the_sum_of_log_probabilities() -> None:
    model = tiny_qwen2_audio(seed=15)
    some = prompts(3)
    history = (*SHORT, Turn("assistant", (Text("A cat."),)), Turn("user", (Audio("b.wav"), Text("And this?"))))
    some.append(Prompt(history, (sound(0.2), sound(0.4, 900)), "history"))
    some.append(Prompt((Turn("user", (Text("No sound."),)),), (), "silent"))
    options = [["dog", "a dog", "a door", ""], ["dog"], ["yes", "no"], ["yes", "no"], ["dog", "dog"]]
    scores = LocalEngine(model).score(some, options)
    plain = plain_copy(model)
    assert [len(row) for row in scores] == [len(row) for row in options]
    for prompt, texts, row in zip(some, options, scores, strict=True):
        for text, score in zip(texts, row, strict=True):
            with torch.no_grad():
                want = plain_logprobs(
                    plain, trunk(model, prompt) + answer_path(model, text), dict(enumerate(prompt.waveforms))
                )
            assert (
                len(want) == len(text) + 1
            )  # bytes and the end mark; the earlier answer in the history does not count
            assert score == pytest.approx(float(want.sum()), abs=2e-5 * len(want))
    assert LocalEngine(model).score([], []) == []


def test_questions_about_one_sound_share_it() -> None:
    """One tree for all of them: the same tokens and log-probabilities as alone, and the sound computed once."""
    model = with_ends(without(tiny_qwen2_audio(seed=19), [3]), 25)
    waveforms, other = (sound(0.9, 300, 1),), (sound(0.4, 700, 2),)
    some = [Prompt((SHORT[0], *ask("Who" + "?" * i)), waveforms, f"a{i}") for i in range(3)]
    some += [Prompt((SHORT[0], *ask("Who")), other, "b"), Prompt((SHORT[0], *ask("Both", 2)), waveforms + other, "c")]
    some.append(Prompt(some[0].turns, (waveforms[0].copy(),), "twin"))  # an equal prompt with draws of its own
    sampling_params = SamplingParams(max_new_tokens=12, temperature=1.2, seed=4)
    engine = LocalEngine(model)
    together = engine.generate(some, sampling_params, 4)
    trunks = [trunk(model, prompt) for prompt in some]
    saved = sum(tokens_alone(model, prompt, sampling_params) for prompt in some) - engine.stats.computed_tokens
    assert saved > 4 * sum(clip >= 0 for clip in trunks[0].clips), "the sound was computed more than once"
    for prompt, group in zip(some, together, strict=True):
        (alone,) = LocalEngine(model).generate([prompt], sampling_params, 4)
        for one, two in zip(group, alone, strict=True):
            assert one.token_ids == two.token_ids
            assert largest([torch.tensor(one.logprobs) - torch.tensor(two.logprobs)]) < 1e-5
    options = [["dog", "cat"]] * len(some)
    alone_scores = [LocalEngine(model).score([prompt], [["dog", "cat"]])[0] for prompt in some]
    assert np.allclose(engine.score(some, options), alone_scores, atol=2e-5)


def tokens_alone(model: Qwen2Audio, prompt: Prompt, sampling_params: SamplingParams) -> int:
    """Tokens computed for one prompt by itself."""
    engine = LocalEngine(model)
    engine.generate([prompt], sampling_params, 4)
    return engine.stats.computed_tokens


def test_stream_says_what_generate_says() -> None:
    engine = LocalEngine(tiny_qwen2_audio(seed=16))
    prompt = prompts(1)[0]
    sampling_params = SamplingParams(max_new_tokens=10)
    pieces = list(engine.stream(prompt, sampling_params))
    said = engine.generate([prompt], sampling_params)[0][0].text
    assert said.startswith("".join(pieces)) and len(pieces) > 1


def test_prompts_it_refuses() -> None:
    engine = LocalEngine(tiny_qwen2_audio())
    for call in (
        lambda p: engine.generate([p], SamplingParams()),
        lambda p: engine.score([p], [["a"]]),
        lambda p: list(engine.stream(p, SamplingParams())),
    ):
        with pytest.raises(AudioError, match=r"clip of 2\.5 s is longer than the 2 s that tiny hears"):
            call(Prompt(SHORT, (sound(2.5),)))
    assert engine.generate([], SamplingParams()) == []


def test_cache_keeps_rows_and_grows() -> None:
    """Two trees written slot by slot; one is dropped, the other outgrows its slots and still reads what was written
    first.
    """
    cache = TreeCache()
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 100, 1, 4, generator=generator) for _ in range(2))
    query = torch.randn(1, 1, 1, 4, generator=generator)

    def write(rows: list[int], tree: int | None, slot: int) -> torch.Tensor:
        mask = torch.ones(len(rows), 1, 1, slot + 1, dtype=torch.bool)
        at = torch.arange(len(rows))
        cache.begin(Step(at, torch.zeros(len(rows), dtype=torch.long), torch.full((len(rows),), slot), mask))
        numbers = rows if tree is None else [tree]
        put = [source[numbers, slot].transpose(0, 1)[None] for source in (keys, values)]
        return cache(0, query.expand(1, 1, len(rows), 4), *put, 0.5)

    for slot in range(3):
        write([0, 1], None, slot)
    cache.keep(torch.tensor([1]))
    for slot in range(3, 100):
        out = write([0], 1, slot)
    weight = (keys[1, :, 0] @ query.flatten() * 0.5).softmax(0)
    assert largest([out.flatten() - weight @ values[1, :, 0]]) < 1e-6
