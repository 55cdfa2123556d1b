"""LoRA layers as one operation: results, gradients, switches and parameter names are those of PEFT."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from builders import max_abs
from earwise.models.parts import lora_product
from earwise.models.precision.bfloat16_products import Bfloat16Weight


def module_with_lora(**config: object) -> nn.Module:
    """Two linear layers with PEFT's LoRA and random weights; `config` are further arguments of `LoraConfig`."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3, bias=False))
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], **config), module)  # type: ignore[arg-type]
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return module


def gradients(module: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """Gradients of the sum of squared outputs, by parameter name, and of the rows."""
    module.zero_grad()
    rows.grad = None
    module(rows).square().sum().backward()
    by_name = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    return by_name | ({"rows": rows.grad} if rows.grad is not None else {})


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (2, 3, 6)])
@pytest.mark.parametrize("rows_need_grad", [True, False])
def test_equals_peft(shape: tuple[int, ...], rows_need_grad: bool) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=rows_need_grad)
    reference, fused = module_with_lora(), module_with_lora()
    assert lora_product.fuse_lora_layers(fused) == 2
    assert list(reference.state_dict()) == list(fused.state_dict())
    assert max_abs([reference(rows) - fused(rows)]) < 1e-6
    expected, actual = gradients(reference, rows), gradients(fused, rows)
    assert set(expected) == set(actual) and len(actual) == 4 + rows_need_grad
    assert max_abs([expected[name] - actual[name] for name in expected]) < 1e-4


def test_base_weights_can_be_trained_as_well() -> None:
    reference, fused = module_with_lora(), module_with_lora()
    lora_product.fuse_lora_layers(fused)
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    expected, actual = (gradients(module.requires_grad_(True), rows) for module in (reference, fused))
    assert set(expected) == set(actual) and "0.base_layer.bias" in actual
    assert max_abs([expected[name] - actual[name] for name in expected]) < 1e-4


def test_the_gradient_is_the_derivative() -> None:
    module = module_with_lora().double()
    layers = module[0].base_layer, module[0].lora_A["default"], module[0].lora_B["default"]
    values = [layer.weight.detach().requires_grad_() for layer in layers]
    rows = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    bias = layers[0].bias.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *tensors: lora_product.LoraProduct.apply(*tensors, 3.0), (rows, values[0], bias, values[1], values[2])
    )


def test_disabled_and_merged_lora_behave_as_in_peft() -> None:
    module = module_with_lora()
    lora_product.fuse_lora_layers(module)
    rows = torch.randn(4, 6)
    enabled = module(rows)
    for layer in (module[0], module[2]):
        layer.enable_adapters(False)
    disabled = module(rows)
    assert max_abs([module[2].base_layer(nn.functional.silu(module[0].base_layer(rows))) - disabled]) == 0
    assert max_abs([enabled - disabled]) > 1e-2
    for layer in (module[0], module[2]):
        layer.enable_adapters(True)
        layer.merge()
    assert max_abs([module(rows) - enabled]) < 1e-5


def test_unsuitable_layers_are_left_to_peft() -> None:
    assert lora_product.fuse_lora_layers(module_with_lora(lora_dropout=0.1)) == 0
    assert lora_product.fuse_lora_layers(module_with_lora(use_dora=True)) == 0
    half = module_with_lora()
    assert lora_product.fuse_lora_layers(half) == 2
    half.bfloat16()
    rows = torch.randn(4, 6, dtype=torch.bfloat16)
    fused = half(rows)
    for layer in (half[0], half[2]):
        del layer.forward
    assert max_abs([fused - half(rows)]) == 0


def test_beside_a_weight_in_bfloat16_only_roundings_are_added() -> None:
    """Against the same sums in float64, with inputs of each product rounded to bfloat16 where the operation rounds."""
    generator = torch.Generator().manual_seed(4)
    rows, weight, bias, lora_a, lora_b, grad = (
        torch.randn(shape, generator=generator) for shape in ((50, 48), (32, 48), (32,), (4, 48), (32, 4), (50, 32))
    )
    inputs = [
        rows.requires_grad_(),
        Bfloat16Weight(weight),
        bias,
        lora_a.requires_grad_(),
        lora_b.requires_grad_(),
        2.0,
    ]
    out = lora_product.Bfloat16LoraProduct.apply(*inputs)
    out.backward(grad)
    exact = [value.detach().double().requires_grad_() for value in (rows, lora_a, lora_b)]
    expected = exact[0] @ weight.double().T + bias.double() + 2 * (exact[0] @ exact[1].T) @ exact[2].T
    expected.backward(grad.double())
    assert out.dtype == torch.float32
    for actual, value in (
        (out, expected),
        *((a.grad, b.grad) for a, b in zip((rows, lora_a, lora_b), exact, strict=True)),
    ):
        assert value is not None
        assert 0 < (actual - value).norm() / value.norm() < 2.0**-7


def test_a_small_update_beside_a_weight_in_bfloat16_is_not_lost() -> None:
    """Outputs of 1, where bfloat16 numbers are 2^-7 apart, get an update of 2^-12."""
    rows, weight = torch.eye(4), Bfloat16Weight(torch.ones(3, 4))
    lora_a, lora_b = torch.ones(2, 4), torch.full((3, 2), 2.0**-13)
    out = lora_product.Bfloat16LoraProduct.apply(rows, weight, None, lora_a, lora_b, 1.0)
    assert torch.equal(out, torch.full((4, 3), 1 + 2.0**-12))
