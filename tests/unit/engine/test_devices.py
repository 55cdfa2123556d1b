"""What a CPU test cannot see and an accelerator would punish: tensors made on the wrong device, and looks at numbers,
each of which makes the host wait.

Models stand on torch's `meta` device, whose tensors have device, dtype and shape but no numbers: reading one fails by
itself, and `OneDevice` fails an operation over two devices. Forests, clips and trunks are made by the code of a run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from builders import ask, sound, tiny_qwen2_audio
from earwise.config.stages import LoraConfig, OptimizerConfig, TrainableConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import Growth
from earwise.engine.draft import Guess
from earwise.engine.kv_cache import TreeCache
from earwise.engine.local import LocalEngine
from earwise.engine.static_cache import StaticCache
from earwise.forest import build_tree, pack
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.flex import BlockSparse
from earwise.models.parts.recompute import recompute_layers
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.train.batches import assemble
from earwise.train.policy import Micro, Policy
from earwise.train.trainable import Reference, parameter_groups, prepare
from families.embedded import tiny as tiny_embedded

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import gpu

FULL = TrainableConfig(encoder="full", connector="full", decoder="full")
LORA = TrainableConfig(lora=LoraConfig(r=4, alpha=8.0))
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Fails operations over tensors of two devices; single numbers may come from anywhere, copies go between."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.dim()]
        devices = {one.device.type for one in given}
        if len(devices) > 1 and func not in COPIES:
            raise AssertionError(f"{func} over {sorted(devices)}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_device() -> Iterator[None]:
    with OneDevice():
        yield


def moved(module: nn.Module) -> None:
    """Put a module on the device, in place; what two names share stays shared."""
    there: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                part._parameters[name] = there.setdefault(
                    id(value), nn.Parameter(value.to("meta"), value.requires_grad)
                )
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = value.to("meta")


def prompts(seconds: float = 0.2) -> list[Prompt]:
    return [Prompt(ask("What" + "?" * n), (sound(seconds + 0.1 * n, 300, n),), str(n)) for n in range(3)]


def micro_of(model: AudioLM, encoder_cache: EncoderCache | None) -> Micro:
    """Three prompts with two completions each, packed where the model stands."""
    trees, waveforms = [], {}
    for number, prompt in enumerate(prompts()):
        waveforms[number] = prompt.waveforms[0]
        trunk = conversation_path(model, prompt.turns, [number], [len(prompt.waveforms[0])], generate=True)
        trees.append([trunk + completion_path(ids) for ids in ((7, 8, 9), (7, 9, 8, 7))])
    (micro,) = assemble(model, encoder_cache, trees, waveforms, 10_000)
    assert micro.forest.ids.is_meta
    return micro


def trained_step(model: AudioLM, micro: Micro) -> None:
    """Reference, forward, gradients, clipping and update, as the GRPO stage and the loop do them. The losses themselves
    read their figures for the log, once a micro batch."""
    policy, reference = Policy(model), Reference(model.module)
    before = reference.logprobs(policy, micro)
    model.module.train()
    values = policy(micro.forest, micro.heard, micro.waveforms)
    loss = ((values - before).square() * micro.forest.loss_mask).sum()
    loss.backward()
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimizerConfig(lr=1e-6)))
    held = [one for group in optimizer.param_groups for one in group["params"]]
    assert all(one.grad is not None and one.grad.is_meta and one.grad.dtype == one.dtype for one in held)
    torch.nn.utils.clip_grad_norm_(held, 1.0)
    optimizer.step()
    model.module.eval()


def decoded(model: AudioLM, encoder_cache: EncoderCache) -> StaticCache:
    """Trunks, then two steps of decoding as on CUDA, the second of fewer trees; tokens are put in by hand."""
    engine = LocalEngine(model, encoder_cache=encoder_cache, static=True)
    static = engine._static
    assert static is not None
    static.capture = True
    with torch.inference_mode():
        cache = TreeCache()
        trunks, connected = engine._trunks(prompts())
        states, scores, slots = engine._prefill(trunks, connected, cache, 2)
        assert scores.is_meta
        with static.holding(cache):
            growth = Growth(
                model, static, slots, [trunk.ids for trunk in trunks], [], [], SamplingParams(),
                room=lambda _: 8, stats=engine.stats, watch=None,
            )  # fmt: skip
            for state in states:
                state.token = 7
            guesses = [Guess(0, -1, 7, 1), Guess(2, -1, 7, 1), Guess(0, 0, 7, 2)]
            found = growth._compute(states, guesses).scores
            assert found.is_meta and found.shape == (len(scores) + 3, scores.shape[1])
            left = [states[0], states[2]]
            static.keep(torch.tensor([0, 2], device="meta"))
            left[1].tree = 1
            growth._slots, growth._free = [slots[0], slots[2]], [[], []]
            assert growth._compute(left, []).scores.shape == scores[:2].shape
    assert static.capture, "a step reads from the device: no graph can be recorded"
    return static


def test_the_net_catches(one_device: None) -> None:
    there, here = torch.zeros(3, device="meta"), torch.zeros(3)
    for wrong in (lambda: there + here, lambda: there[torch.tensor([0])], lambda: torch.cat([there, here])):
        with pytest.raises(AssertionError, match="over"):
            wrong()
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(there.sum() > 0)
    assert (there * torch.tensor(2.0) + here.to("meta")).is_meta


@pytest.mark.parametrize("trainable", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_qwen2_audio_trains_and_decodes(trainable: TrainableConfig, dtype: torch.dtype, one_device: None) -> None:
    model = tiny_qwen2_audio(1)
    model.module.to(dtype)
    prepare(model, trainable)
    moved(model.module)
    recompute_layers(model.module)
    encoder_cache = EncoderCache(model)
    whole = trainable is FULL
    micro = micro_of(model, None if whole else encoder_cache)
    assert bool(micro.heard) != whole
    trained_step(model, micro)
    static = decoded(model, encoder_cache)
    assert [(shape.tokens, shape.trees) for shape in static.shapes] == [(8, 4), (2, 2)]
    assert {buffer.dtype for buffer in static._keys} == {dtype} and all(buffer.is_meta for buffer in static._keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedded_model_trains_and_decodes(dtype: torch.dtype, one_device: None) -> None:
    """From what its encoder said on; the tied head stays tied."""
    model = tiny_embedded(1).model
    for part in (model.module.encoder, model.module.decoder):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)
    prepare(model, LORA)
    encoder_cache = EncoderCache(model)
    encoder_cache.encoder_states([prompt.waveforms[0] for prompt in prompts()])
    moved(model.module)
    assert model.module.head.weight is model.module.decoder.embed_tokens.weight
    trained_step(model, micro_of(model, encoder_cache))
    decoded(model, encoder_cache)


def test_block_masks_are_made_where_the_forest_is(one_device: None) -> None:
    model = tiny_qwen2_audio(1)
    trunk = conversation_path(model, prompts()[0].turns, [0], [3200], generate=True)
    forest = pack([build_tree([trunk + completion_path((5, 6)), trunk + completion_path((5, 7))])], torch.device("meta"))
    mask = BlockSparse(forest, compiled=False)._mask
    parts = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_indices, mask.q_indices, mask.full_q_indices)
    assert all(part is not None and part.is_meta for part in parts)


def test_the_benchmark_at_the_real_width(one_device: None) -> None:
    """Two layers of Qwen2-Audio-7B's in bfloat16, everything trained."""
    audio, text = gpu.AUDIO | {"encoder_layers": 2}, gpu.TEXT | {"num_hidden_layers": 2}
    model = gpu.build(audio, text, "meta", torch.bfloat16)
    prepare(model, FULL)
    recompute_layers(model.module)
    trained_step(model, micro_of(model, None))
    decoded(model, EncoderCache(model))
