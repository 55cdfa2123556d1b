"""The operators of a pass are counted as torch's own counter counts them, by phase, packed products included."""

from collections.abc import Callable

import pytest
import torch
from torch.utils import flop_counter

from builders import tiny_qwen2_audio, tone, user_question
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.base import AudioLM
from earwise.models.cpu_decode import fused_layers
from earwise.models.encoder_cache import EncoderCache
from earwise.models.precision.bfloat16_products import multiplication
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training.batches import build_micro_batches
from earwise.training.limits.operators import OperatorRecord, Product
from earwise.training.policy import Policy
from families import embedded

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
FORMULAS = {
    ATTENTION: lambda *shapes, **_: flop_counter.sdpa_flop_count(*shapes[:3]),
    ATTENTION_BACKWARD: lambda *shapes, **_: flop_counter.sdpa_backward_flop_count(*shapes[:4]),
}
"""torch's own formulas of attention, which it registers for its CUDA operators only."""


def training_pass(model: AudioLM) -> Callable[[], None]:
    """Encoder, connector, decoder and head on a tree of two answers, and the backward pass of everything."""
    waveforms = {0: tone(1.2)}
    prompt = conversation_path(model, user_question("What is it?"), [0], [len(waveforms[0])], generate=True)
    paths = [prompt + answer_path(model, text) for text in ("a dog barks", "rain")]
    model.module.requires_grad_(True)

    def run() -> None:
        (micro_batch,) = build_micro_batches(model, None, [paths], waveforms, 4096)
        Policy(model)(*micro_batch.policy_inputs).sum().backward()

    return run


@pytest.mark.parametrize("family", ["embedded", "qwen2_audio"])
def test_flops_equal_those_of_torchs_counter(family: str) -> None:
    model = embedded.tiny().model if family == "embedded" else tiny_qwen2_audio(1)
    run = training_pass(model)
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter:
        run()
    record = OperatorRecord()
    with record:
        run()
    (operators,) = record.phases.values()
    assert operators.flops == counter.get_total_flops() > 1e5
    assert operators.product_seconds > 0 and operators.other_seconds > 0


def test_sampling_is_counted_in_inference_mode() -> None:
    model = embedded.tiny().model
    prompt = Prompt(user_question("What is it?"), (tone(0.7),), "a")
    states = EncoderCache(model)
    counts = []
    for _ in range(2):
        engine = LocalEngine(model, encoder_cache=states)
        record = OperatorRecord()
        with record:
            engine.generate([prompt], SamplingParams(4), 1)
        counts.append(record.phases["all"])
    first, again = counts
    assert first.flops > again.flops > 0, "the second engine finds the clip's states in the cache"
    assert any(product.rows > 1 for product in again.products)


def test_operators_belong_to_the_phase_that_is_going_on() -> None:
    phases = ["forward"]
    record = OperatorRecord(lambda: phases[-1])
    a = torch.ones(3, 4, requires_grad=True)
    with record:
        out = a @ torch.ones(4, 5)
        phases.append("backward")
        out.sum().backward()
    assert record.phases["forward"].products.keys() == {Product(3, 4, 5, 1, "float32")}
    assert record.phases["backward"].products.keys() == {Product(3, 5, 4, 1, "float32")}
    assert record.phases["forward"].flops == 2 * 3 * 4 * 5


def test_packed_products_have_the_size_of_their_layers() -> None:
    layer = torch.nn.Linear(32, 48, bias=False).requires_grad_(False)
    record = OperatorRecord()
    forward = fused_layers.packed_forward(layer, 8, {})
    multiply = multiplication(layer.weight.bfloat16())
    assert forward is not None
    with record, torch.inference_mode():
        forward(torch.ones(5, 32))
        multiply(torch.ones(5, 32).bfloat16())
    (float32, bfloat16) = sorted(record.phases["all"].products, key=lambda product: product.dtype, reverse=True)
    assert float32 == Product(8, 32, 48, 1, "float32"), "the rows that the weights are packed for"
    assert bfloat16 == Product(5, 32, 48, 1, "bfloat16")
    assert bfloat16.bytes == 2 * (5 * 32 + 32 * 48 + 5 * 48) and float32.flops == 2 * 8 * 32 * 48


def test_a_convolution_counts_its_gradients() -> None:
    conv = torch.nn.Conv1d(3, 6, 3, padding=1)
    signal = torch.ones(2, 3, 10, requires_grad=True)
    record, counter = OperatorRecord(), flop_counter.FlopCounterMode(display=False)
    for mode in (record, counter):
        with mode:
            conv(signal).sum().backward()
    assert record.phases["all"].flops == counter.get_total_flops() == 3 * 2 * (2 * 10) * 9 * 6
