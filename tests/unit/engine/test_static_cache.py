"""Decoding in fixed shapes: the same tokens and log-probabilities as the growing cache, for every family, in any batch;
and which decoders can be captured as CUDA graphs."""

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch

from builders import max_abs, tiny_qwen2_audio, tone, user_question
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.kv_cache import StepLayout
from earwise.engine.local import LocalEngine
from earwise.engine.static_cache import HostReadDetector, StaticCache, StepShape, bucket_size
from earwise.models.base import AudioLM
from earwise.types import Completion
from families.forests import lengths, make_clip, turn
from families.tiny import FAMILIES, Tiny

HOST_READING_FAMILIES = {"phi4_multimodal"}
"""Families whose decoders read from the device while they run, so that no graph can be captured."""


def tiny_family(name: str) -> Tiny:
    """The tiny random model of a family."""
    module, _, function = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), function)()


def prompts_for(family: Tiny) -> list[Prompt]:
    """Two questions about one clip, one about another, one without audio."""
    waveforms = [
        make_clip(family.model, seconds, 300.0 * (1 + index), index) for index, seconds in enumerate(lengths(family))
    ]
    questions = [
        ("What is it?", (0,)),
        ("Is it loud? Say", (0,)),
        ("Which of them?", (1,)),
        ("No sound. What now?", ()),
    ]
    return [
        Prompt((turn("user", text, *clips),), tuple(waveforms[clip] for clip in clips), key=text)
        for text, clips in questions
    ]


def logprob_difference(ours: list[list[Completion]], reference: list[list[Completion]]) -> float:
    """Largest difference of a log-probability, after checking that the tokens are the same."""
    pairs = [pair for group, others in zip(ours, reference, strict=True) for pair in zip(group, others, strict=True)]
    assert [first.token_ids for first, _ in pairs] == [second.token_ids for _, second in pairs]
    assert [first.finish_reason for first, _ in pairs] == [second.finish_reason for _, second in pairs]
    return max_abs([torch.tensor(first.logprobs) - torch.tensor(second.logprobs) for first, second in pairs])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_completions(name: str) -> None:
    family = tiny_family(name)
    prompts = prompts_for(family)
    growing = LocalEngine(family.model, use_static_cache=False)
    static = LocalEngine(family.model, use_static_cache=True)
    one_by_one = LocalEngine(family.model, use_static_cache=True, batch_size=1)
    for sampling_params in (SamplingParams(7, temperature=1.2, seed=3), SamplingParams(5)):
        expected = growing.generate(prompts, sampling_params, 5)
        assert logprob_difference(static.generate(prompts, sampling_params, 5), expected) < 1e-5
        assert logprob_difference(one_by_one.generate(prompts, sampling_params, 5), expected) < 1e-5


def model_with_many_end_tokens(seed: int, kv_heads: int, sliding_window: int | None = None) -> AudioLM:
    """A tiny Qwen2-Audio in which every 25th token ends a completion, and which never samples the placeholder."""
    model = tiny_qwen2_audio(seed, kv_heads=kv_heads, sliding_window=sliding_window)
    model.eos_ids = (2, *range(8, 262, 25))
    suppressed = torch.zeros(272, dtype=torch.bool)
    suppressed[3] = True
    model.module.lm_head.register_forward_hook(lambda _m, _i, logits: logits.masked_fill(suppressed, -1e9))
    return model


@pytest.mark.parametrize(("kv_heads", "sliding_window"), [(4, None), (2, None), (2, 25), (1, None)])
def test_many_branches_dropped_trees_and_growing_buffers(kv_heads: int, sliding_window: int | None) -> None:
    model = model_with_many_end_tokens(12 + kv_heads, kv_heads, sliding_window)
    prompts = [
        Prompt(
            user_question("What" + "?" * number, 1 + number % 2),
            (tone(0.1 + 0.13 * number, 200, number),) * (1 + number % 2),
            f"p{number}",
        )
        for number in range(5)
    ]
    prompts.append(Prompt(user_question("What"), (tone(0.5, 900, 9),), "long"))
    sampling_params = SamplingParams(max_new_tokens=30, temperature=1.3, seed=5)
    expected = LocalEngine(model, use_static_cache=False).generate(prompts, sampling_params, 6)
    completion_lengths = {len(completion.token_ids) for group in expected for completion in group}
    assert len(completion_lengths) > 8 and max(completion_lengths) > 20
    engine = LocalEngine(model, use_static_cache=True)
    assert logprob_difference(engine.generate(prompts, sampling_params, 6), expected) < 1e-5
    static = engine._static_cache
    assert static is not None
    assert max(shape.slots for shape in static.shapes) > 128, "the buffers never grew"
    # Again in buffers that hold earlier tokens: other prompts, the first ones once more, one sample of each.
    earlier_shapes, size = static.shapes, static.nbytes
    assert logprob_difference(engine.generate(prompts[3:], sampling_params, 6), expected[3:]) < 1e-5
    assert logprob_difference(engine.generate(prompts, sampling_params, 6), expected) < 1e-5
    single_samples = LocalEngine(model, use_static_cache=False).generate(prompts, sampling_params, 1)
    assert logprob_difference(engine.generate(prompts, sampling_params, 1), single_samples) < 1e-5
    assert static.nbytes == size and set(earlier_shapes) <= set(static.shapes), (
        "the buffers moved, so captured graphs would be lost"
    )
    assert {shape.trees for shape in static.shapes} >= {8, 4}, "no tree was dropped"
    assert len({shape.tokens for shape in static.shapes}) > 3 and len({shape.queries for shape in static.shapes}) > 1


def test_shapes_are_few() -> None:
    assert [bucket_size(count) for count in (1, 2, 3, 5, 128, 129)] == [1, 2, 4, 8, 128, 256]
    sizes = [bucket_size(count, 128) for count in (1, 129, 193, 257, 600, 2378)]
    assert sizes == [128, 192, 256, 384, 768, 3072]
    # R1-AQA's step at worst: 16 trees, 8 samples, 32 tokens after a prompt of 330.
    slots = {bucket_size(330 + 8 * step, 128) for step in range(33)}
    assert slots == {384, 512, 768}


def test_padding_has_no_effect() -> None:
    """Three tokens of two trees in a shape of four tokens, by hand.

    The fourth token repeats the first, keys of unused trees and slots weigh nothing, and no branch sees its sibling.
    """
    model = tiny_qwen2_audio(1)
    static = StaticCache(model, capture=False)
    generator = torch.Generator().manual_seed(0)
    static._ensure_capacity(2, 4)
    static._keys = [torch.randn(2, 1, 128, 2, generator=generator)]
    static._values = [torch.randn(2, 1, 128, 2, generator=generator)]
    keys_before, values_before = static._keys[0].clone(), static._values[0].clone()
    mask = torch.zeros(2, 1, 2, 4, dtype=torch.bool)
    mask[0, 0, 0, [0, 2]] = mask[0, 0, 1, [0, 3]] = mask[1, 0, 0, [0, 1]] = True
    trees, query_index, slots = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.tensor([2, 3, 1])
    queries, keys, values = (torch.randn(1, heads, 4, 2, generator=generator) for heads in (2, 1, 1))
    for projection in (queries, keys, values):
        projection[:, :, 3] = projection[:, :, 0]

    class OneAttentionLayer:
        """A model whose decoder is one attention call with fixed queries, keys and values."""

        def embed(self, ids: torch.Tensor) -> torch.Tensor:
            return ids

        def decode(self, ids: torch.Tensor, positions: torch.Tensor, attend: Callable) -> torch.Tensor:
            assert ids.tolist() == [7, 8, 9, 7] and positions.tolist() == [4, 4, 5, 4]
            return attend(0, queries, keys, values, 0.5)[0].transpose(0, 1).flatten(1)

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    layout = StepLayout(trees, query_index, slots, mask)
    out = static.advance(OneAttentionLayer(), torch.tensor([7, 8, 9]), torch.tensor([4, 4, 5]), layout)
    assert static.shapes == [StepShape(tokens=4, trees=2, queries=2, slots=128)]
    for token in range(3):
        tree, slot = int(trees[token]), int(slots[token])
        for head in range(2):
            visible_keys = torch.stack((keys_before[tree, 0, 0], keys[0, 0, token]))
            weights = (visible_keys @ queries[0, head, token] * 0.5).softmax(0)
            expected = weights @ torch.stack((values_before[tree, 0, 0], values[0, 0, token]))
            assert torch.allclose(out[token].view(2, 2)[head], expected, atol=1e-6)
        assert torch.equal(static._keys[0][tree, 0, slot], keys[0, 0, token])
    untouched = torch.ones(2, 128, dtype=torch.bool)
    untouched[trees, slots] = False
    assert torch.equal(static._keys[0][:, 0][untouched], keys_before[:, 0][untouched])


@pytest.mark.parametrize(
    ("reads", "call"),
    [
        (True, lambda x: int(x.argmax())),
        (True, lambda x: bool((x > 0).all())),
        (True, lambda x: x.nonzero()),
        (True, lambda x: x[x > 0]),
        (True, lambda x: x.masked_select(x > 0)),
        (True, lambda x: x.unique()),
        (True, lambda x: x.to("meta")),
        (False, lambda x: (x @ x.T).softmax(-1).masked_fill(x @ x.T > 0, 0.0).topk(2)),
        (False, lambda x: x[torch.tensor([0, 1])]),
        (False, lambda x: x.index_put((torch.tensor([0]),), x.new_zeros(1, 4))),
        (False, lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])),
    ],
)
def test_reads_from_the_device_are_detected(reads: bool, call: Callable) -> None:
    numbers = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with HostReadDetector() as detector:
        call(numbers)
    assert detector.reads == reads


@pytest.mark.parametrize("name", FAMILIES)
def test_decoders_that_read_from_the_device_are_never_captured(name: str) -> None:
    """Without a CUDA device, capturing fails, which is reported once and costs nothing but speed."""
    family = tiny_family(name)
    prompts, sampling_params = prompts_for(family)[:2], SamplingParams(9, temperature=1.2, seed=3)
    engine = LocalEngine(family.model, use_static_cache=True)
    assert engine._static_cache is not None
    engine._static_cache.capture = True
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        completions = engine.generate(prompts, sampling_params, 3)
    warned = any("without CUDA graphs" in str(message.message) for message in messages)
    assert warned == (name not in HOST_READING_FAMILIES)
    assert not engine._static_cache.capture
    expected = LocalEngine(family.model, use_static_cache=False).generate(prompts, sampling_params, 3)
    assert logprob_difference(completions, expected) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_graphs_on_cuda_give_what_the_cpu_gives(kv_heads: int) -> None:
    """Captured and replayed, over several rollouts and after the weights changed in place."""
    model = tiny_qwen2_audio(31, kv_heads=kv_heads)
    prompts = [
        Prompt(user_question("What" + "?" * number), (tone(0.2 + 0.1 * number, 300, number),), str(number))
        for number in range(5)
    ]
    sampling_params = SamplingParams(max_new_tokens=40)
    for change in (1.0, 0.8):
        model.module.cpu()
        model.module.lm_head.weight.mul_(change)
        expected = LocalEngine(model).generate(prompts, sampling_params, 1)
        model.module.cuda()
        engine = LocalEngine(model)
        assert engine._static_cache is not None and engine._static_cache.capture
        for _ in range(3):
            assert logprob_difference(engine.generate(prompts, sampling_params, 1), expected) < 1e-3
        assert engine._static_cache.num_captured > 3
        model.module.model.language_model.norm.weight.mul_(0.5)
        halved = engine.generate(prompts, sampling_params, 1)
        model.module.cpu()
        assert logprob_difference(halved, LocalEngine(model).generate(prompts, sampling_params, 1)) < 1e-3
        model.module.model.language_model.norm.weight.mul_(2.0)
