"""LoRA as plain tensors: collected from peft's layers, stacked, merged."""

import pytest
import torch
from torch import nn

from builders import max_abs
from earwise.models.parts import lora


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def adapted(seed: int, rank: int, alpha: float, targets: list[str]) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    module = Two()
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0), module)
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return module


def plain() -> Two:
    torch.manual_seed(0)
    return Two()


@torch.no_grad()
def test_merged_equals_peft() -> None:
    module = adapted(1, 2, 6.0, ["first", "second"])
    state = lora.collect(module)
    assert sorted(state) == ["first.lora_A", "first.lora_B", "second.lora_A", "second.lora_B"]
    merged, x = plain(), torch.randn(5, 4)
    lora.merge(dict(merged.named_parameters()), state)
    assert max_abs([merged(x) - module(x)]) < 1e-6
    assert max_abs([plain()(x) - module(x)]) > 1e-2


@torch.no_grad()
def test_stacked_adds_up() -> None:
    one, two = (
        lora.collect(adapted(seed, rank, 4.0, targets))
        for seed, rank, targets in ((1, 2, ["first"]), (2, 3, ["first", "second"]))
    )
    both = lora.concatenate_ranks(one, two)
    assert (
        both["first.lora_A"].shape == (5, 4)
        and both["first.lora_B"].shape == (3, 5)
        and both["second.lora_A"].shape == (3, 3)
    )
    at_once, in_turn = plain(), plain()
    lora.merge(dict(at_once.named_parameters()), both)
    lora.merge(dict(in_turn.named_parameters()), one)
    lora.merge(dict(in_turn.named_parameters()), two)
    assert (
        max_abs([a - b for a, b in zip(at_once.state_dict().values(), in_turn.state_dict().values(), strict=True)])
        < 1e-6
    )
    first = lora.first_ranks(both, 2)
    assert all(torch.equal(first[name], value) for name, value in one.items())
    assert lora.concatenate_ranks({}, one).keys() == one.keys() == lora.concatenate_ranks(one, {}).keys()


def test_nothing_to_collect_and_nothing_that_fits() -> None:
    assert lora.collect(plain()) == {}
    with pytest.raises(KeyError, match="third"):
        lora.merge(
            dict(plain().named_parameters()), {"third.lora_A": torch.zeros(1, 4), "third.lora_B": torch.zeros(3, 1)}
        )
    with pytest.raises(KeyError, match="lora_A"):
        lora.merge(dict(plain().named_parameters()), {"first.lora_B": torch.zeros(3, 1)})
