"""Prepacked weights: the same numbers as the original layers, for any number of rows, and never outdated."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from builders import tiny_qwen2_audio
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.cpu_decode.free_memory import release_freed_memory
from earwise.models.cpu_decode.prepacked import BREAK_EVEN_PASSES, PrepackedWeights
from earwise.models.parts.attention import TreeAttention
from earwise.training.trainable import set_trainable

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this build of torch has no MKL")


def two_linear_layers() -> nn.ModuleDict:
    """A "decoder" of two linear layers, one with a bias."""
    torch.manual_seed(0)
    return nn.ModuleDict({"decoder": nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 7, bias=False))})


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 40])
def test_results_are_equal_for_any_number_of_rows(rows: int) -> None:
    module = two_linear_layers()
    hidden = torch.randn(1, rows, 24)
    expected = module["decoder"](hidden)
    weights = PrepackedWeights(module, ("decoder.",))
    with weights.active(8, passes=BREAK_EVEN_PASSES):
        assert "forward" in vars(module["decoder"][0])
        packed = module["decoder"](hidden)
    assert "forward" not in vars(module["decoder"][0])
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_other_rows() -> None:
    """Bit for bit: neither on how many rows there are, nor on their content."""
    module = two_linear_layers()
    hidden, others = torch.randn(8, 24), torch.randn(8, 24)
    others[5] = hidden[5]
    with PrepackedWeights(module, ("decoder.",)).active(8, passes=BREAK_EVEN_PASSES):
        together = module["decoder"](hidden)
        assert torch.equal(together[5], module["decoder"](others)[5])
        for count in range(1, 8):
            assert torch.equal(together[:count], module["decoder"](hidden[:count]))


@torch.no_grad()
def test_a_row_does_not_depend_on_its_place() -> None:
    """Bit for bit, where widths are multiples of 16, as in real decoders: on some processors the remainder of other
    widths is summed in another order."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"decoder": nn.Sequential(nn.Linear(24, 48), nn.Linear(48, 32, bias=False))})
    hidden = torch.randn(8, 24)
    with PrepackedWeights(module, ("decoder.",)).active(8, passes=BREAK_EVEN_PASSES):
        together = module["decoder"](hidden)
        for place in range(8):
            assert torch.equal(together[place : place + 1], module["decoder"](hidden[place : place + 1]))


@torch.no_grad()
def test_a_changed_weight_is_packed_again() -> None:
    module = two_linear_layers()
    weights = PrepackedWeights(module, ("decoder.",))
    hidden = torch.randn(4, 24)
    with weights.active(8, passes=BREAK_EVEN_PASSES):
        before = module["decoder"](hidden)
    module["decoder"][0].weight.mul_(2)
    with weights.active(8, passes=BREAK_EVEN_PASSES):
        after = module["decoder"](hidden)
    torch.testing.assert_close(after, module["decoder"](hidden), rtol=0, atol=1e-6)
    assert not torch.allclose(before, after)


@torch.no_grad()
def test_nothing_is_packed_for_few_passes_or_rows() -> None:
    module = two_linear_layers()
    weights = PrepackedWeights(module, ("decoder.",))
    for rows, passes in ((8, BREAK_EVEN_PASSES - 1), (2, BREAK_EVEN_PASSES)):
        with weights.active(rows, passes=passes):
            assert "forward" not in vars(module["decoder"][0])


@torch.no_grad()
@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("tokens", [2, 8, 9])
def test_whole_decoder_layers_with_and_without_lora(tokens: int, with_lora: bool) -> None:
    model = tiny_qwen2_audio(seed=2)
    weights = PrepackedWeights(model.module, model.parameter_prefixes["decoder"])
    if with_lora:
        with weights.active(8, passes=BREAK_EVEN_PASSES):
            pass  # what was packed before LoRA was added must not be used afterwards
        torch.manual_seed(1)
        set_trainable(model, TrainableConfig(lora=LoraConfig(r=4, lora_alpha=8)))
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    path = TokenPath(tuple(range(10, 10 + tokens)), (False,) * (tokens - 1) + (True,), (-1,) * tokens)
    forest = pack([build_tree([path])])

    def logits() -> torch.Tensor:
        return model.logits(model.decode(model.embed(forest.ids), forest.positions, TreeAttention(forest)))

    expected = logits()
    layer = model.module.model.language_model.layers[1]
    with weights.active(8, passes=BREAK_EVEN_PASSES):
        assert "forward" in vars(layer) and "forward" in vars(model.module.lm_head)
        torch.testing.assert_close(logits(), expected, rtol=0, atol=2e-5)
    assert "forward" not in vars(layer)
    if with_lora:
        for name, parameter in model.module.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.5)
        with weights.active(8, passes=BREAK_EVEN_PASSES):
            changed = logits()
        torch.testing.assert_close(changed, logits(), rtol=0, atol=2e-5)
        assert not torch.allclose(changed, expected)
        with torch.enable_grad():
            logits().sum().backward()
        assert layer.self_attn.q_proj.lora_B["default"].weight.grad is not None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident size is read from /proc")
def test_freed_memory_goes_back_to_the_operating_system() -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    torch.ones(7 << 20)  # 28 MB: from now on the allocator keeps blocks below that size
    blocks = [torch.ones(1 << 20) for _ in range(60)]
    kept = [torch.ones(1 << 14) for _ in range(60)]
    full = resident_mb()
    del blocks
    release_freed_memory()
    assert resident_mb() < full - 150
    assert sum(float(block[0]) for block in kept) == 60
