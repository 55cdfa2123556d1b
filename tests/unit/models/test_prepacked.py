"""Packed weights: the same numbers as the layers themselves, for any number of rows, and never stale."""

import pytest
import torch
from torch import nn

from builders import tiny_qwen2_audio
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.cpu_decode.prepacked import PAYS, Packed
from earwise.models.parts.attention import TreeAttention
from earwise.train.trainable import prepare

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this build of torch has no MKL")


def layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"decoder": nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 7, bias=False))})


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 40])
def test_equal_for_any_number_of_rows(rows: int) -> None:
    module = layers()
    hidden = torch.randn(1, rows, 24)
    plain = module["decoder"](hidden)
    packed = Packed(module, ("decoder.",))
    with packed.decoding(8, passes=PAYS):
        assert "forward" in vars(module["decoder"][0])
        inside = module["decoder"](hidden)
    assert "forward" not in vars(module["decoder"][0])
    torch.testing.assert_close(inside, plain, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others() -> None:
    module = layers()
    hidden = torch.randn(8, 24)
    with Packed(module, ("decoder.",)).decoding(8, passes=PAYS):
        together = module["decoder"](hidden)
        assert torch.equal(together[5:6], module["decoder"](hidden[5:6]))


@torch.no_grad()
def test_packed_anew_when_a_weight_changes() -> None:
    module = layers()
    packed = Packed(module, ("decoder.",))
    hidden = torch.randn(4, 24)
    with packed.decoding(8, passes=PAYS):
        before = module["decoder"](hidden)
    module["decoder"][0].weight.mul_(2)
    with packed.decoding(8, passes=PAYS):
        after = module["decoder"](hidden)
    torch.testing.assert_close(after, module["decoder"](hidden), rtol=0, atol=1e-6)
    assert not torch.allclose(before, after)


@torch.no_grad()
def test_few_passes_or_rows_pack_nothing() -> None:
    module = layers()
    packed = Packed(module, ("decoder.",))
    for rows, passes in ((8, PAYS - 1), (2, PAYS)):
        with packed.decoding(rows, passes=passes):
            assert "forward" not in vars(module["decoder"][0])


@torch.no_grad()
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("tokens", [2, 8, 9])
def test_whole_decoder_layers_with_and_without_lora(tokens: int, adapted: bool) -> None:
    model = tiny_qwen2_audio(seed=2)
    packed = Packed(model.module, model.groups["decoder"])
    if adapted:
        with packed.decoding(8, passes=PAYS):
            pass  # what was packed before LoRA came must not stand for what comes after
        torch.manual_seed(1)
        prepare(model, TrainableConfig(lora=LoraConfig(r=4, alpha=8)))
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    path = TokenPath(tuple(range(10, 10 + tokens)), (False,) * (tokens - 1) + (True,), (-1,) * tokens)
    forest = pack([build_tree([path])])

    def scores() -> torch.Tensor:
        return model.logits(model.decode(model.embed(forest.ids), forest.positions, TreeAttention(forest)))

    plain = scores()
    layer = model.module.model.language_model.layers[1]
    with packed.decoding(8, passes=PAYS):
        assert "forward" in vars(layer) and "forward" in vars(model.module.lm_head)
        torch.testing.assert_close(scores(), plain, rtol=0, atol=2e-5)
    assert "forward" not in vars(layer)
    if adapted:
        for name, parameter in model.module.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.5)
        with packed.decoding(8, passes=PAYS):
            changed = scores()
        torch.testing.assert_close(changed, scores(), rtol=0, atol=2e-5)
        assert not torch.allclose(changed, plain)
        with torch.enable_grad():
            scores().sum().backward()
        assert layer.self_attn.q_proj.lora_B["default"].weight.grad is not None
