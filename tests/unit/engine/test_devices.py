"""Mistakes that cost nothing on a CPU and much on an accelerator: tensors on the wrong device, reads by the host.

Models live on torch's `meta` device, whose tensors have device, dtype and shape but no values: reading one fails by
itself, and `SingleDeviceMode` fails an operation over two devices. The code under test is that of a real run.
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

from builders import tiny_qwen2_audio, tone, user_question
from earwise.config.stages import LoraConfig, OptimizerConfig, TrainableConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import DecodeLoop, DecodeRequest
from earwise.engine.kv_cache import TreeCache
from earwise.engine.local import LocalEngine
from earwise.engine.prefill import prefill
from earwise.engine.sampling.draft import DraftToken
from earwise.engine.static_cache import StaticCache
from earwise.forest import build_tree, pack
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.flex import BlockSparseAttention
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.training.batches import build_micro_batches
from earwise.training.policy import MicroBatch, Policy
from earwise.training.trainable import Reference, parameter_groups, set_trainable
from families.embedded import tiny as tiny_embedded

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import gpu

FULL = TrainableConfig(encoder="full", connector="full", decoder="full")
LORA = TrainableConfig(lora=LoraConfig(r=4, lora_alpha=8.0))
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class SingleDeviceMode(TorchDispatchMode):
    """Fails operations over tensors of two devices. Scalars may come from anywhere, and copies go between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        devices = {tensor.device.type for tensor in tensors}
        if len(devices) > 1 and func not in COPIES:
            raise AssertionError(f"{func} over {sorted(devices)}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def single_device() -> Iterator[None]:
    with SingleDeviceMode():
        yield


def move_to_meta(module: nn.Module) -> None:
    """Move a module to the meta device, in place; tied parameters stay tied."""
    moved: dict[int, nn.Parameter] = {}
    for submodule in module.modules():
        for name, value in list(submodule._parameters.items()):
            if value is not None:
                submodule._parameters[name] = moved.setdefault(
                    id(value), nn.Parameter(value.to("meta"), value.requires_grad)
                )
        for name, value in list(submodule._buffers.items()):
            if value is not None:
                submodule._buffers[name] = value.to("meta")


def make_prompts(seconds: float = 0.2) -> list[Prompt]:
    """Three prompts with one clip each, of different lengths."""
    return [Prompt(user_question("What" + "?" * n), (tone(seconds + 0.1 * n, 300, n),), str(n)) for n in range(3)]


def make_micro_batch(model: AudioLM, encoder_cache: EncoderCache | None) -> MicroBatch:
    """Three prompts with two completions each, packed on the model's device."""
    trees, waveforms = [], {}
    for number, prompt in enumerate(make_prompts()):
        waveforms[number] = prompt.waveforms[0]
        path = conversation_path(model, prompt.turns, [number], [len(prompt.waveforms[0])], generate=True)
        trees.append([path + completion_path(ids) for ids in ((7, 8, 9), (7, 9, 8, 7))])
    (micro_batch,) = build_micro_batches(model, encoder_cache, trees, waveforms, 10_000)
    assert micro_batch.forest.ids.is_meta
    return micro_batch


def train_one_step(model: AudioLM, micro_batch: MicroBatch) -> None:
    """Reference, forward, gradients, clipping and update, as the GRPO stage and the training loop do them.

    The losses themselves are left out: they read their metrics from the device once per micro batch.
    """
    policy, reference = Policy(model), Reference(model.module)
    ref_logprobs = reference.logprobs(policy, micro_batch)
    model.module.train()
    logprobs = policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
    loss = ((logprobs - ref_logprobs).square() * micro_batch.forest.loss_mask).sum()
    loss.backward()
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimizerConfig(learning_rate=1e-6)))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        assert parameter.grad is not None and parameter.grad.is_meta and parameter.grad.dtype == parameter.dtype
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    model.module.eval()


def decode_two_steps(model: AudioLM, encoder_cache: EncoderCache) -> StaticCache:
    """Prefill, then two decoding steps as on CUDA, the second with fewer trees; tokens are put in by hand."""
    engine = LocalEngine(model, encoder_cache=encoder_cache, use_static_cache=True)
    static = engine._static_cache
    assert static is not None
    static.capture = True
    with torch.inference_mode():
        cache = TreeCache()
        paths, audio_embeddings = engine._encode_prompts(make_prompts())
        with pytest.raises(StopIteration) as prefilled:  # in one pass, without a pause
            next(prefill(model, paths, audio_embeddings, cache, 2, engine.stats))
        start = prefilled.value.value
        leaves, logits, next_slots = start.leaves, start.logits, start.next_slots
        assert logits.is_meta
        with static.loaded(cache):
            request = DecodeRequest([path.ids for path in paths], [], [], SamplingParams())
            loop = DecodeLoop(model, static, next_slots, request, row_capacity=lambda _: 8, stats=engine.stats)
            for leaf in leaves:
                leaf.token = 7
            drafts = [DraftToken(0, -1, 7, 1), DraftToken(2, -1, 7, 1), DraftToken(0, 0, 7, 2)]
            first_step = loop._forward(leaves, drafts).logits
            assert first_step.is_meta and first_step.shape == (len(logits) + 3, logits.shape[1])
            remaining = [leaves[0], leaves[2]]
            static.select_trees(torch.tensor([0, 2], device="meta"))
            remaining[1].tree = 1
            loop._next_slots, loop._free_slots = [next_slots[0], next_slots[2]], [[], []]
            assert loop._forward(remaining, []).logits.shape == logits[:2].shape
    assert static.capture, "a step reads from the device: no graph can be captured"
    return static


def test_the_checks_of_this_file_detect_mistakes(single_device: None) -> None:
    on_meta, on_cpu = torch.zeros(3, device="meta"), torch.zeros(3)
    mixed_calls = (
        lambda: on_meta + on_cpu, lambda: on_meta[torch.tensor([0])], lambda: torch.cat([on_meta, on_cpu])
    )  # fmt: skip
    for mixed_call in mixed_calls:
        with pytest.raises(AssertionError, match="over"):
            mixed_call()
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(on_meta.sum() > 0)
    assert (on_meta * torch.tensor(2.0) + on_cpu.to("meta")).is_meta


@pytest.mark.parametrize("trainable", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qwen2_audio_trains_and_decodes(trainable: TrainableConfig, dtype: torch.dtype, single_device: None) -> None:
    model = tiny_qwen2_audio(1)
    model.module.to(dtype)
    set_trainable(model, trainable)
    move_to_meta(model.module)
    enable_gradient_checkpointing(model.module)
    encoder_cache = EncoderCache(model)
    encoder_trains = trainable is FULL
    micro_batch = make_micro_batch(model, None if encoder_trains else encoder_cache)
    assert bool(micro_batch.encoder_states) != encoder_trains
    train_one_step(model, micro_batch)
    static = decode_two_steps(model, encoder_cache)
    assert [(shape.tokens, shape.trees) for shape in static.shapes] == [(8, 4), (2, 2)]
    assert {buffer.dtype for buffer in static._keys} == {dtype} and all(buffer.is_meta for buffer in static._keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_embedded_model_trains_and_decodes(dtype: torch.dtype, single_device: None) -> None:
    """From cached encoder states on; the tied output head stays tied."""
    model = tiny_embedded(1).model
    for part in (model.module.encoder, model.module.decoder):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)
    set_trainable(model, LORA)
    encoder_cache = EncoderCache(model)
    encoder_cache.encoder_states([prompt.waveforms[0] for prompt in make_prompts()])
    move_to_meta(model.module)
    assert model.module.head.weight is model.module.decoder.embed_tokens.weight
    train_one_step(model, make_micro_batch(model, encoder_cache))
    decode_two_steps(model, encoder_cache)


def test_block_masks_are_on_the_forest_device(single_device: None) -> None:
    model = tiny_qwen2_audio(1)
    path = conversation_path(model, make_prompts()[0].turns, [0], [3200], generate=True)
    forest = pack([build_tree([path + completion_path((5, 6)), path + completion_path((5, 7))])], torch.device("meta"))
    mask = BlockSparseAttention(forest, compiled=False).mask(12)
    parts = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_indices, mask.q_indices, mask.full_q_indices)
    assert all(part is not None and part.is_meta for part in parts)


def test_the_gpu_benchmark_at_the_released_width(single_device: None) -> None:
    """Two of Qwen2-Audio-7B's layers in bfloat16, everything trained."""
    audio, text = gpu.AUDIO | {"encoder_layers": 2}, gpu.TEXT | {"num_hidden_layers": 2}
    model = gpu.build(audio, text, "meta", torch.bfloat16)
    set_trainable(model, FULL)
    enable_gradient_checkpointing(model.module)
    train_one_step(model, make_micro_batch(model, None))
    decode_two_steps(model, EncoderCache(model))
