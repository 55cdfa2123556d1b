"""How often the host reads values back from tensors in a decoding step and in a training step, counted on the CPU.

On an accelerator each such read waits for the device. What matters is that their number does not grow with layers,
rows or tokens: a decoding step reads the sampled tokens, a micro-batch its loss and metrics.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from builders import tone, user_question
from earwise.algorithms.policy_loss import grpo_loss
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.base import AudioLM
from earwise.models.decoders.llama import LlamaDecoderLayer
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy
from earwise.training.trainable import set_trainable
from families import embedded

READS = ("tolist", "numpy", "cpu", "item")
"""Methods of a tensor by which Python reads its values or fetches it."""
LORA = TrainableConfig(lora=LoraConfig(r=4, lora_alpha=8.0))


class HostReads(TorchDispatchMode):
    """Counts operators that give a value to the host, and those whose shape depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default or torch.Tag.dynamic_output_shape in func.tags:
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def reads(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of reads by the host while some work is done."""
    mode = HostReads()
    with monkeypatch.context() as patched:
        for name in READS[:3]:  # `item` arrives as an operator

            def counted(self: Tensor, *args: Any, _name: str = name, **kwargs: Any) -> Any:
                mode.counts[_name] += 1
                return getattr(torch._C.TensorBase, _name)(self, *args, **kwargs)

            patched.setattr(torch.Tensor, name, counted, raising=False)
        with mode:
            work()
    return mode.counts.total()


def deeper(model: AudioLM, layers: int) -> AudioLM:
    """The model with more decoder layers."""
    module: Any = model.module
    config = module.decoder.config
    for index in range(config.num_hidden_layers, layers):
        layer = LlamaDecoderLayer(config, index).requires_grad_(False).eval()
        module.decoder.layers.append(layer)
    config.num_hidden_layers = layers
    return model


def test_the_counter_sees_what_it_is_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([1.0, 0.0])
    works: tuple[Callable[[], object], ...] = (
        lambda: values.sum().item(), lambda: float(values[0]), lambda: bool(values[0] > 0), values.tolist,
        lambda: values.nonzero(), lambda: values[values > 0], values.cpu, values.numpy,
    )  # fmt: skip
    assert [reads(work, monkeypatch) for work in works] == [1] * 3 + [0] + [1] * 2 + [0] * 2, "bound before counting"
    assert reads(lambda: values.tolist(), monkeypatch) == reads(lambda: values.cpu(), monkeypatch) == 1
    assert reads(lambda: values * 2 + values.sum(), monkeypatch) == 0


def decoding_reads(monkeypatch: pytest.MonkeyPatch, *, tokens: int, samples: int = 2, layers: int = 2) -> int:
    """Reads of a rollout of one prompt, with completions that do not end."""
    model = deeper(embedded.tiny().model, layers)
    model.eos_ids = ()
    states = EncoderCache(model)
    prompt = Prompt(user_question("What is it?"), (tone(0.5),), "a")
    states.encoder_states(list(prompt.waveforms))
    engine = LocalEngine(model, encoder_cache=states)
    return reads(lambda: engine.generate([prompt], SamplingParams(tokens, 1.0, seed=3), samples), monkeypatch)


READS_A_TOKEN = 8
"""Largest number of reads of one decoding step."""


def test_reads_of_a_decoding_step_grow_with_neither_layers_nor_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = (decoding_reads(monkeypatch, tokens=tokens, samples=1) for tokens in (4, 12))
    assert 0 < (long - short) / 8 <= READS_A_TOKEN
    assert decoding_reads(monkeypatch, tokens=4, samples=1, layers=5) == short
    assert decoding_reads(monkeypatch, tokens=4, samples=8) <= 2 * decoding_reads(monkeypatch, tokens=4, samples=2)


READS_A_MICRO_BATCH = 20
"""Largest number of reads of the passes over one micro-batch."""


def training_reads(monkeypatch: pytest.MonkeyPatch, *, completions: int, tokens: int, layers: int = 2) -> int:
    """Reads of the forward pass, GRPO's loss, the backward pass and gradient clipping of one tree.

    The optimizer is left out: it reads its step counters, which are on the host.
    """
    model = deeper(embedded.tiny().model, layers)
    set_trainable(model, LORA)
    waveforms = {0: tone(0.5)}
    path = conversation_path(model, user_question("What?"), [0], [len(waveforms[0])], generate=True)
    paths = [path + completion_path([7 + number, *range(20, 19 + tokens)]) for number in range(completions)]
    (micro_batch,) = build_micro_batches(model, EncoderCache(model), [paths], waveforms, 10_000)
    parameters = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    policy = Policy(model)

    def step() -> None:
        logprobs = policy(*micro_batch.policy_inputs)
        loss = grpo_loss(logprobs, None, None, torch.ones(completions), micro_batch.forest.loss_mask).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)

    return reads(step, monkeypatch)


def test_reads_of_a_training_step_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    few = training_reads(monkeypatch, completions=2, tokens=3)
    assert training_reads(monkeypatch, completions=6, tokens=3) == few
    assert training_reads(monkeypatch, completions=2, tokens=9) == few
    assert training_reads(monkeypatch, completions=2, tokens=3, layers=5) == few
    assert few <= READS_A_MICRO_BATCH
