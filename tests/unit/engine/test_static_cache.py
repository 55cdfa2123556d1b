"""Decoding in fixed shapes: the same tokens and log-probabilities as the growing cache, for every family, in any batch;
and what of it can be recorded as a CUDA graph."""

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch

from builders import ask, largest, sound, tiny_qwen2_audio
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.engine.static_cache import Shape, StaticCache, Watch, rung
from earwise.models.base import AudioLM
from earwise.types import Completion
from families.forests import lengths, turn, wave
from families.tiny import FAMILIES, Tiny

READS = {"gemma3n", "phi4_multimodal"}
"""Families whose decoders look at the device while they run, so that no graph can be recorded."""


def tiny(family: str) -> Tiny:
    module, _, function = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), function)()


def prompts_for(tiny: Tiny) -> list[Prompt]:
    """Two questions about one sound, one about another, one without a sound."""
    waveforms = [wave(tiny.model, seconds, 300.0 * (1 + at), at) for at, seconds in enumerate(lengths(tiny))]
    asked = [("What is it?", (0,)), ("Is it loud? Say", (0,)), ("Which of them?", (1,)), ("No sound. What now?", ())]
    return [
        Prompt((turn("user", text, *clips),), tuple(waveforms[clip] for clip in clips), key=text) for text, clips in asked
    ]


def off(ours: list[list[Completion]], theirs: list[list[Completion]]) -> float:
    """Largest difference of a log-probability, once the tokens are known to be the same."""
    pairs = [(a, b) for some, others in zip(ours, theirs, strict=True) for a, b in zip(some, others, strict=True)]
    assert [a.token_ids for a, _ in pairs] == [b.token_ids for _, b in pairs]
    assert [a.finish_reason for a, _ in pairs] == [b.finish_reason for _, b in pairs]
    return largest([torch.tensor(a.logprobs) - torch.tensor(b.logprobs) for a, b in pairs])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same(family: str) -> None:
    one = tiny(family)
    prompts = prompts_for(one)
    growing, fixed = LocalEngine(one.model, static=False), LocalEngine(one.model, static=True)
    alone = LocalEngine(one.model, static=True, trees=1)
    for sampling_params in (SamplingParams(7, temperature=1.2, seed=3), SamplingParams(5)):
        expected = growing.generate(prompts, sampling_params, 5)
        assert off(fixed.generate(prompts, sampling_params, 5), expected) < 1e-5
        assert off(alone.generate(prompts, sampling_params, 5), expected) < 1e-5


def uneven(seed: int, kv_heads: int) -> AudioLM:
    """A tiny Qwen2-Audio of which every 25th token ends a completion; it never says the placeholder."""
    model = tiny_qwen2_audio(seed, kv_heads=kv_heads)
    model.eos_ids = (2, *range(8, 262, 25))
    barred = torch.zeros(272, dtype=torch.bool)
    barred[3] = True
    model.module.lm_head.register_forward_hook(lambda _m, _i, scores: scores.masked_fill(barred, -1e9))
    return model


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_many_branches_uneven_ends_trees_that_are_dropped_buffers_that_grow(kv_heads: int) -> None:
    model = uneven(12 + kv_heads, kv_heads)
    asked = ask("What")
    prompts = [
        Prompt(
            ask("What" + "?" * number, 1 + number % 2),
            (sound(0.1 + 0.13 * number, 200, number),) * (1 + number % 2),
            f"p{number}",
        )
        for number in range(5)
    ]
    prompts.append(Prompt(asked, (sound(0.5, 900, 9),), "long"))
    sampling_params = SamplingParams(max_new_tokens=30, temperature=1.3, seed=5)
    expected = LocalEngine(model, static=False).generate(prompts, sampling_params, 6)
    ends = {len(one.token_ids) for group in expected for one in group}
    assert len(ends) > 8 and max(ends) > 20
    engine = LocalEngine(model, static=True)
    assert off(engine.generate(prompts, sampling_params, 6), expected) < 1e-5
    static = engine._static
    assert static is not None
    assert max(shape.slots for shape in static.shapes) > 128, "the buffers never grew"
    # Again in buffers that hold what was said before: other prompts, the first ones once more, one sample of each.
    kept, size = static.shapes, static.nbytes
    assert off(engine.generate(prompts[3:], sampling_params, 6), expected[3:]) < 1e-5
    assert off(engine.generate(prompts, sampling_params, 6), expected) < 1e-5
    once = LocalEngine(model, static=False).generate(prompts, sampling_params, 1)
    assert off(engine.generate(prompts, sampling_params, 1), once) < 1e-5
    assert static.nbytes == size and set(kept) <= set(static.shapes), (
        "the buffers moved, and with them what was recorded"
    )
    assert {shape.trees for shape in static.shapes} >= {8, 4}, "no tree was dropped"
    assert len({shape.tokens for shape in static.shapes}) > 3 and len({shape.queries for shape in static.shapes}) > 1


def test_shapes_are_few() -> None:
    assert [rung(count) for count in (1, 2, 3, 5, 128, 129)] == [1, 2, 4, 8, 128, 256]
    assert [rung(count, 128) for count in (1, 129, 193, 257, 600, 2378)] == [128, 192, 256, 384, 768, 3072]
    # R1-AQA's step at worst: 16 trees, 8 samples, 32 tokens on a trunk of 330.
    slots = {rung(330 + 8 * step, 128) for step in range(33)}
    assert slots == {384, 512, 768}


def test_what_fills_up_a_shape_is_not_seen() -> None:
    """Three states of two trees in a shape of four and two: the fourth row repeats the first, keys of an empty tree and
    of slots that were never written weigh nothing, and a branch does not see its sibling. By hand."""
    model = tiny_qwen2_audio(1)
    static = StaticCache(model, capture=False)
    generator = torch.Generator().manual_seed(0)
    static._room(2, 4)
    static._keys = [torch.randn(2, 1, 128, 2, generator=generator)]
    static._values = [torch.randn(2, 1, 128, 2, generator=generator)]
    before, worth = static._keys[0].clone(), static._values[0].clone()
    seen = torch.zeros(2, 1, 2, 4, dtype=torch.bool)
    seen[0, 0, 0, [0, 2]] = seen[0, 0, 1, [0, 3]] = seen[1, 0, 0, [0, 1]] = True
    rows, columns, slots = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.tensor([2, 3, 1])
    queries, keys, values = (torch.randn(1, heads, 4, 2, generator=generator) for heads in (2, 1, 1))
    for part in (queries, keys, values):
        part[:, :, 3] = part[:, :, 0]

    class Told:
        def embed(self, ids: torch.Tensor) -> torch.Tensor:
            return ids

        def decode(self, ids: torch.Tensor, positions: torch.Tensor, attend: Callable) -> torch.Tensor:
            assert ids.tolist() == [7, 8, 9, 7] and positions.tolist() == [4, 4, 5, 4]
            return attend(0, queries, keys, values, 0.5)[0].transpose(0, 1).flatten(1)

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    from earwise.engine.kv_cache import Step

    out = static.advance(Told(), torch.tensor([7, 8, 9]), torch.tensor([4, 4, 5]), Step(rows, columns, slots, seen))
    assert static.shapes == [Shape(tokens=4, trees=2, queries=2, slots=128)]
    for token in range(3):
        row, slot = int(rows[token]), int(slots[token])
        for head in range(2):
            both = torch.stack((before[row, 0, 0], keys[0, 0, token]))
            weight = (both @ queries[0, head, token] * 0.5).softmax(0)
            wanted = weight @ torch.stack((worth[row, 0, 0], values[0, 0, token]))
            assert torch.allclose(out[token].view(2, 2)[head], wanted, atol=1e-6)
        assert torch.equal(static._keys[0][row, 0, slot], keys[0, 0, token])
    untouched = torch.ones(2, 128, dtype=torch.bool)
    untouched[rows, slots] = False
    assert torch.equal(static._keys[0][:, 0][untouched], before[:, 0][untouched])


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
def test_reads_of_the_device_are_noticed(reads: bool, call: Callable) -> None:
    numbers = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        call(numbers)
    assert watch.reads == reads


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_that_read_are_never_recorded(family: str) -> None:
    """Without a CUDA device recording fails, which is said once and costs nothing but speed."""
    one = tiny(family)
    prompts, sampling_params = prompts_for(one)[:2], SamplingParams(9, temperature=1.2, seed=3)
    engine = LocalEngine(one.model, static=True)
    assert engine._static is not None
    engine._static.capture = True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = engine.generate(prompts, sampling_params, 3)
    assert any("without CUDA graphs" in str(one.message) for one in said) == (family not in READS)
    assert not engine._static.capture
    assert off(found, LocalEngine(one.model, static=False).generate(prompts, sampling_params, 3)) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_graphs_on_cuda_say_what_the_cpu_says(kv_heads: int) -> None:
    """Recorded and replayed, over two rollouts and after the weights changed in place."""
    model = tiny_qwen2_audio(31, kv_heads=kv_heads)
    prompts = [
        Prompt(ask("What" + "?" * number), (sound(0.2 + 0.1 * number, 300, number),), str(number))
        for number in range(5)
    ]
    sampling_params = SamplingParams(max_new_tokens=40)
    for change in (1.0, 0.8):
        model.module.cpu()
        model.module.lm_head.weight.mul_(change)
        expected = LocalEngine(model).generate(prompts, sampling_params, 1)
        model.module.cuda()
        engine = LocalEngine(model)
        assert engine._static is not None and engine._static.capture
        for _ in range(3):
            assert off(engine.generate(prompts, sampling_params, 1), expected) < 1e-3
        assert engine._static.recorded > 3
        model.module.model.language_model.norm.weight.mul_(0.5)
        halved = engine.generate(prompts, sampling_params, 1)
        model.module.cpu()
        assert off(halved, LocalEngine(model).generate(prompts, sampling_params, 1)) < 1e-3
        model.module.model.language_model.norm.weight.mul_(2.0)
