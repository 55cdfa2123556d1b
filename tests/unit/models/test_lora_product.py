"""LoRA's product as one operation: peft's numbers and gradients, its switches, and names that stay."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from builders import max_abs
from earwise.models.parts import lora_product


def adapted(**config: object) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3, bias=False))
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], **config), module)  # type: ignore[arg-type]
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return module


def gradients(module: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    rows.grad = None
    module(rows).square().sum().backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found | ({"rows": rows.grad} if rows.grad is not None else {})


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (2, 3, 6)])
@pytest.mark.parametrize("rows_need", [True, False])
def test_equals_peft(shape: tuple[int, ...], rows_need: bool) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=rows_need)
    theirs, ours = adapted(), adapted()
    assert lora_product.fuse_lora_layers(ours) == 2
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert max_abs([theirs(rows) - ours(rows)]) < 1e-6
    wanted, found = gradients(theirs, rows), gradients(ours, rows)
    assert set(wanted) == set(found) and len(found) == 4 + rows_need
    assert max_abs([wanted[name] - found[name] for name in wanted]) < 1e-4


def test_weights_that_are_trained_too() -> None:
    theirs, ours = adapted(), adapted()
    lora_product.fuse_lora_layers(ours)
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    wanted, found = (gradients(module.requires_grad_(True), rows) for module in (theirs, ours))
    assert set(wanted) == set(found) and "0.base_layer.bias" in found
    assert max_abs([wanted[name] - found[name] for name in wanted]) < 1e-4


def test_gradient_is_the_derivative() -> None:
    module = adapted().double()
    parts = module[0].base_layer, module[0].lora_A["default"], module[0].lora_B["default"]
    values = [part.weight.detach().requires_grad_() for part in parts]
    rows = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    bias = parts[0].bias.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *some: lora_product._Product.apply(*some, 3.0), (rows, values[0], bias, values[1], values[2])
    )


def test_switches_are_peft_s() -> None:
    module = adapted()
    lora_product.fuse_lora_layers(module)
    rows = torch.randn(4, 6)
    on = module(rows)
    for layer in (module[0], module[2]):
        layer.enable_adapters(False)
    off = module(rows)
    assert max_abs([module[2].base_layer(nn.functional.silu(module[0].base_layer(rows))) - off]) == 0
    assert max_abs([on - off]) > 1e-2
    for layer in (module[0], module[2]):
        layer.enable_adapters(True)
        layer.merge()
    assert max_abs([module(rows) - on]) < 1e-5


def test_what_does_not_fit_stays_peft_s() -> None:
    assert lora_product.fuse_lora_layers(adapted(lora_dropout=0.1)) == 0
    assert lora_product.fuse_lora_layers(adapted(use_dora=True)) == 0
    half = adapted()
    assert lora_product.fuse_lora_layers(half) == 2
    half.bfloat16()
    rows = torch.randn(4, 6, dtype=torch.bfloat16)
    ours = half(rows)
    for layer in (half[0], half[2]):
        del layer.forward
    assert max_abs([ours - half(rows)]) == 0
