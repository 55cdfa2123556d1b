"""Products in 8-bit integers: how far they are off, what stays exact, and what goes."""

from typing import Literal

import pytest
import torch
from torch import nn

from builders import tiny_qwen2_audio
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.models.cpu_decode.fused_layers import EXACT_LOGITS, packed_forward
from earwise.models.precision import compute
from earwise.models.precision.int8_products import Int8Weight
from earwise.models.precision.packed_linear import pack
from earwise.types import Text, Turn


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_weights_and_inputs_are_rounded_and_nothing_else(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(48, 96, generator=generator), torch.randn(48, generator=generator)
    x = torch.randn(rows, 96, generator=generator) * torch.logspace(-3, 3, rows)[:, None]
    (layer,) = pack([weight], [bias], "int8")
    assert isinstance(layer.product, Int8Weight)
    weight_steps = weight.abs().amax(1, keepdim=True).double() / 127
    row_steps = x.abs().amax(1, keepdim=True).double() / layer.product.largest
    exact = (x / row_steps).round() @ (weight / weight_steps).round().T * row_steps * weight_steps.T + bias
    torch.testing.assert_close(layer(x).double(), exact, rtol=1e-3, atol=1e-4 * float(x.abs().max()))
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer(x)[-1:], layer(x[-1:]))  # a row does not depend on the others
    assert torch.equal(layer(x.view(rows, 1, 96)).view(rows, 48), layer(x))


def test_a_large_weight_is_rounded_in_pieces() -> None:
    weight, x = torch.randn(9001, 8), torch.eye(8)
    (layer,) = pack([weight], [None], "int8")
    steps = weight.abs().amax(1) / 127
    assert ((layer(x).T - weight).abs() <= steps[:, None] / 2 + 1e-6).all()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_layers_that_read_the_same_rows_are_columns_of_one_product(dtype: Literal["int8", "bfloat16"]) -> None:
    weights, biases = [torch.randn(8, 16), torch.randn(4, 16)], [None, torch.randn(4)]
    x = torch.randn(3, 2, 16)
    together = pack(weights, biases, dtype)
    alone = [pack([weight], [bias], dtype)[0] for weight, bias in zip(weights, biases, strict=True)]
    for first, second in zip(together, alone, strict=True):
        assert torch.equal(first(x), second(x))
    assert together[0].product is together[1].product
    assert [layer.out_features for layer in together] == [8, 4]


def test_a_row_of_zeros_gives_the_bias() -> None:
    (layer,) = pack([torch.randn(8, 16)], [torch.arange(8.0)], "int8")
    assert torch.equal(layer(torch.zeros(2, 16)), torch.arange(8.0).expand(2, 8))


@torch.no_grad()
def test_the_largest_logits_of_an_output_head_are_exact() -> None:
    torch.manual_seed(1)
    head = nn.Linear(32, 4096).requires_grad_(False)
    hidden = torch.randn(9, 32)
    forward = packed_forward(head, 8, {}, "int8")
    assert forward is not None
    exact, logits = head(hidden), forward(hidden)
    largest = exact.topk(EXACT_LOGITS // 2).indices
    torch.testing.assert_close(logits.gather(1, largest), exact.gather(1, largest), rtol=1e-6, atol=1e-5)
    assert torch.equal(logits.argmax(1), exact.argmax(1))


def test_a_model_in_int8_answers_without_its_float32_weights() -> None:
    model = tiny_qwen2_audio(seed=2)
    revision = LocalEngine(model).revision
    prompts = [Prompt((Turn("user", (Text(text),)),), (), text) for text in ("what is this?", "and that?")]
    exact = LocalEngine(model).score(prompts, [("a dog", "a cat and a bird")] * 2)
    assert compute.set_compute(model, "int8") == compute.INT8
    decoder = model.parameter_prefixes["decoder"][0]
    matrices = [name for name, value in model.module.named_parameters() if name.startswith(decoder) and value.ndim > 1]
    assert all("embed" in name for name in matrices)
    engine = LocalEngine(model)
    assert engine.revision == f"{revision}+encoder float32, prefill int8, decode int8"
    for before, after in zip(exact, engine.score(prompts, [("a dog", "a cat and a bird")] * 2), strict=True):
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 0.05 * 18
    together = engine.generate(prompts, SamplingParams(12, 0.0), 1)
    alone = [engine.generate([prompt], SamplingParams(12, 0.0), 1)[0] for prompt in prompts]
    assert [group[0].token_ids for group in together] == [group[0].token_ids for group in alone]
    assert compute.set_compute(model, "int8") == compute.INT8
    with pytest.raises(ModelError, match="is in int8, its float32 weights are gone; load it again for compute float32"):
        compute.set_compute(model, "float32")
