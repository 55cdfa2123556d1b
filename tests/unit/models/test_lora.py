"""LoRA as plain tensors: collected from PEFT layers, concatenated, merged."""

import pytest
import torch
from torch import nn

from builders import max_abs
from earwise.models.parts import lora


class TwoLayers(nn.Module):
    """Two linear layers, the second without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def module_with_lora(seed: int, rank: int, alpha: float, targets: list[str]) -> nn.Module:
    """`TwoLayers` with PEFT's LoRA on some layers and random LoRA weights."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    module = TwoLayers()
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0), module)
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return module


def module_without_lora() -> TwoLayers:
    """The same base weights without LoRA."""
    torch.manual_seed(0)
    return TwoLayers()


@torch.no_grad()
def test_merged_equals_peft() -> None:
    module = module_with_lora(1, 2, 6.0, ["first", "second"])
    matrices = lora.collect(module)
    assert sorted(matrices) == ["first.lora_A", "first.lora_B", "second.lora_A", "second.lora_B"]
    merged, x = module_without_lora(), torch.randn(5, 4)
    lora.merge(dict(merged.named_parameters()), matrices)
    assert max_abs([merged(x) - module(x)]) < 1e-6
    assert max_abs([module_without_lora()(x) - module(x)]) > 1e-2


@torch.no_grad()
def test_concatenated_ranks_act_as_the_sum() -> None:
    first, second = (
        lora.collect(module_with_lora(seed, rank, 4.0, targets))
        for seed, rank, targets in ((1, 2, ["first"]), (2, 3, ["first", "second"]))
    )
    both = lora.concatenate_ranks(first, second)
    assert (
        both["first.lora_A"].shape == (5, 4)
        and both["first.lora_B"].shape == (3, 5)
        and both["second.lora_A"].shape == (3, 3)
    )
    merged_once, merged_in_turn = module_without_lora(), module_without_lora()
    lora.merge(dict(merged_once.named_parameters()), both)
    lora.merge(dict(merged_in_turn.named_parameters()), first)
    lora.merge(dict(merged_in_turn.named_parameters()), second)
    assert (
        max_abs(
            [
                a - b
                for a, b in zip(merged_once.state_dict().values(), merged_in_turn.state_dict().values(), strict=True)
            ]
        )
        < 1e-6
    )
    recovered = lora.first_ranks(both, 2)
    assert all(torch.equal(recovered[name], value) for name, value in first.items())
    assert lora.concatenate_ranks({}, first).keys() == first.keys() == lora.concatenate_ranks(first, {}).keys()


def test_no_lora_and_matrices_that_do_not_fit() -> None:
    assert lora.collect(module_without_lora()) == {}
    with pytest.raises(KeyError, match="third"):
        lora.merge(
            dict(module_without_lora().named_parameters()),
            {"third.lora_A": torch.zeros(1, 4), "third.lora_B": torch.zeros(3, 1)},
        )
    with pytest.raises(KeyError, match="lora_A"):
        lora.merge(dict(module_without_lora().named_parameters()), {"first.lora_B": torch.zeros(3, 1)})


def test_reduced_ranks_are_the_nearest_of_their_rank() -> None:
    """The product's largest singular values stay, and the distance is the root of the squares of the others."""
    torch.manual_seed(0)
    matrices = {"w.lora_A": torch.randn(5, 8), "w.lora_B": torch.randn(7, 5)}
    product = matrices["w.lora_B"] @ matrices["w.lora_A"]
    values = torch.linalg.svdvals(product)
    for rank in (2, 5, 9):
        reduced = lora.reduce_ranks(matrices, rank)
        assert reduced["w.lora_A"].shape == (min(rank, 5), 8) and reduced["w.lora_B"].shape == (7, min(rank, 5))
        distance = (reduced["w.lora_B"] @ reduced["w.lora_A"] - product).norm()
        assert float(distance) == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-5)


def test_ranks_of_two_stages_are_told_apart() -> None:
    first, second = ({"w.lora_A": torch.randn(r, 4), "w.lora_B": torch.randn(3, r)} for r in (2, 3))
    both = lora.concatenate_ranks(first, second)
    assert all(torch.equal(value, first[name]) for name, value in lora.first_ranks(both, 2).items())
    assert all(torch.equal(value, second[name]) for name, value in lora.ranks_after(both, 2).items())
