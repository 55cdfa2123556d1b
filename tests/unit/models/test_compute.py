"""Products in bfloat16: how far they are off, what stays exact, and when they are used."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import earwise
from builders import tiny_qwen2_audio
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.data import manifest
from earwise.data.manifest_path import manifest_path
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ModelError
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.cpu_decode.fused_layers import EXACT_LOGITS, packed_forward
from earwise.models.cpu_decode.prepacked import PrepackedWeights
from earwise.models.parts.attention import TreeAttention
from earwise.models.precision import bfloat16_products, compute, probe
from earwise.models.precision.bfloat16_products import Bfloat16Weight, round_stochastically
from earwise.training.trainable import set_trainable
from earwise.types import Text, Turn

SPACING = 2.0**-7
"""Largest distance of two neighbouring bfloat16 numbers, relative to them."""


def rounded(x: Tensor) -> Tensor:
    """Values as bfloat16 holds them, for sums in float64."""
    return x.bfloat16().double()


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_only_input_weight_and_result_are_rounded(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(48, 96, generator=generator), torch.randn(rows, 96, generator=generator)
    packed = Bfloat16Weight(weight)
    exact = rounded(x) @ rounded(weight).T
    assert ((packed.product(x) - exact).abs() <= SPACING / 2 * exact.abs() + 1e-4).all()
    grad = torch.randn(rows, 48, generator=generator)
    exact = rounded(grad) @ rounded(weight)
    assert ((packed.input_gradient(grad) - exact).abs() <= SPACING / 2 * exact.abs() + 1e-4).all()
    assert packed.product(x).dtype == packed.input_gradient(grad).dtype == torch.float32
    assert torch.equal(packed.product(x)[:1], packed.product(x[:1]))  # a row does not depend on the others


def test_without_bfloat16_kernels_the_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(48, 96), torch.randn(5, 96)
    with_kernels = Bfloat16Weight(weight).product(x)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    torch.testing.assert_close(Bfloat16Weight(weight).product(x), with_kernels, rtol=SPACING, atol=1e-3)


def test_random_rounding_keeps_the_expected_value() -> None:
    values = torch.tensor([1.0, -1.0, 1.0 + SPACING / 4, -(1.0 + SPACING / 4), 3e-20, 0.0])
    draws = torch.stack([round_stochastically(values.expand(4096, -1), seed).double().mean(0) for seed in range(4)])
    torch.testing.assert_close(draws.mean(0), values.double(), rtol=2e-4, atol=1e-24)
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(round_stochastically(exact.float(), 0), exact)
    assert torch.equal(round_stochastically(values, 3), round_stochastically(values, 3))


def test_a_changed_weight_is_packed_again_and_a_trained_one_is_left_alone() -> None:
    module = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))})
    x = torch.randn(3, 32)
    before = module["encoder"](x)
    module["encoder"][1].requires_grad_(True)
    module["encoder"][0].requires_grad_(False)
    assert bfloat16_products.install(module, ("encoder.",)) == 1
    in_bfloat16 = module["encoder"](x)
    assert not torch.equal(in_bfloat16, before)
    torch.testing.assert_close(in_bfloat16, before, rtol=0.02, atol=0.02)
    module["encoder"][0].weight.mul_(2)
    changed = module["encoder"](x)
    module["encoder"][0].weight.requires_grad_(True)  # from here on trained: exact, and with a gradient
    module["encoder"](x).sum().backward()
    assert module["encoder"][0].weight.grad is not None
    exact = module["encoder"](x)
    torch.testing.assert_close(changed, exact, rtol=0.02, atol=0.02)
    bfloat16_products.uninstall(module)
    assert torch.equal(module["encoder"](x), exact)


def test_gradients_of_lora_are_within_two_percent() -> None:
    torch.manual_seed(0)
    model = tiny_qwen2_audio(seed=2)
    set_trainable(model, TrainableConfig(lora=LoraConfig(r=4, lora_alpha=8)))
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    length = 40
    forest = pack(
        [build_tree([TokenPath(tuple(range(10, 10 + length)), (False,) + (True,) * (length - 1), (-1,) * length)])]
    )

    def gradient() -> Tensor:
        model.module.zero_grad()
        model.logits(
            model.decode(model.embed(forest.ids), forest.positions, TreeAttention(forest))
        ).square().mean().backward()
        return torch.cat([value.grad.flatten() for value in model.module.parameters() if value.grad is not None])

    exact = gradient()
    compute.apply(model, compute.BFLOAT16)
    relative = (gradient() - exact).norm() / exact.norm()
    assert 0 < relative < 0.02
    compute.apply(model, compute.FLOAT32)
    assert torch.equal(gradient(), exact)


@torch.no_grad()
def test_the_largest_logits_of_an_output_head_are_exact() -> None:
    torch.manual_seed(1)
    head = nn.Linear(32, 4096).requires_grad_(False)
    head.weight.mul_(40)  # logits of a few dozen, where bfloat16 numbers are 0.125 and more apart
    hidden = torch.randn(9, 32)
    forward = packed_forward(head, 8, {}, "bfloat16")
    assert forward is not None
    exact, logits = head(hidden), forward(hidden)
    largest = exact.topk(EXACT_LOGITS // 2).indices
    torch.testing.assert_close(logits.gather(1, largest), exact.gather(1, largest), rtol=1e-6, atol=1e-4)
    assert torch.equal(logits.argmax(1), exact.argmax(1))
    torch.testing.assert_close(
        logits.log_softmax(1).max(1).values, exact.log_softmax(1).max(1).values, rtol=0, atol=0.05
    )


@torch.no_grad()
def test_an_update_smaller_than_the_spacing_arrives_in_decoding() -> None:
    torch.manual_seed(0)
    model = tiny_qwen2_audio(seed=2)
    set_trainable(model, TrainableConfig(lora=LoraConfig(r=4, lora_alpha=8)))
    layer = model.module.model.language_model.layers[0].mlp.down_proj
    base, lora_b = layer.base_layer.weight, layer.lora_B["default"].weight
    base.copy_(torch.ones_like(base))
    nn.init.constant_(lora_b, 1.0)
    nn.init.constant_(layer.lora_A["default"].weight, 1.0)
    scale = layer.scaling["default"]
    update = (lora_b @ layer.lora_A["default"].weight) * scale
    lora_b.mul_(
        SPACING / 8 / update.abs().max()
    )  # an eighth of the spacing: rounding to the nearest gives the base back
    update = (lora_b @ layer.lora_A["default"].weight) * scale
    assert torch.equal((base + update).bfloat16().float(), base)
    compute.apply(model, compute.BFLOAT16)
    weights = PrepackedWeights(model.module, model.parameter_prefixes["decoder"])
    with weights.active(8, passes=1):
        product = model.module.model.language_model.layers[0].forward._down
        identity = product(torch.eye(base.shape[1])).T
    moved = identity - base
    assert (moved != 0).any()
    torch.testing.assert_close(moved.sum() / update.sum(), torch.tensor(1.0), rtol=0.25, atol=0)


def sampled(model: object, n: int = 4) -> list[list[tuple[int, ...]]]:
    """Tokens that an engine samples for two text prompts."""
    engine = LocalEngine(model)  # type: ignore[arg-type]
    prompts = [Prompt((Turn("user", (Text(text),)),), (), text) for text in ("what is this?", "and that?")]
    return [[sample.token_ids for sample in group] for group in engine.generate(prompts, SamplingParams(12, 1.0), n)]


def test_float32_is_what_it_was_to_the_bit() -> None:
    model = tiny_qwen2_audio(seed=2)
    expected = sampled(model)
    assert compute.set_compute(model, "float32") == compute.FLOAT32
    assert sampled(model) == expected
    compute.apply(model, compute.BFLOAT16)
    sampled(model)
    compute.apply(model, compute.FLOAT32)
    assert sampled(model) == expected


def test_the_precision_is_part_of_the_revision() -> None:
    model = tiny_qwen2_audio(seed=2)
    revision = LocalEngine(model).revision
    compute.apply(model, compute.BFLOAT16)
    assert LocalEngine(model).revision == f"{revision}+bfloat16"
    compute.apply(model, compute.ComputePlan(decode="bfloat16"))
    assert LocalEngine(model).revision == f"{revision}+encoder float32, prefill float32, decode bfloat16"


@torch.no_grad()
def test_log_probabilities_are_close_however_a_completion_is_computed() -> None:
    exact, fast = tiny_qwen2_audio(seed=2), tiny_qwen2_audio(seed=2)
    compute.apply(fast, compute.BFLOAT16)
    prompt = Prompt((Turn("user", (Text("what is this?"),)),), (), "key")
    options = [("a dog", "a cat and a bird", "")]
    for before, after in zip(
        LocalEngine(exact).score([prompt], options)[0], LocalEngine(fast).score([prompt], options)[0], strict=True
    ):
        assert abs(before - after) < 0.05 * 18


LARGE: probe.Shapes = {"encoder": (2048, 512), "prefill": (1536, 576), "decode": (1536, 576)}
"""The widest weights of the default model."""


@pytest.mark.parametrize(
    ("bfloat16_s", "chosen"),
    [
        ({"encoder": 0.4, "prefill": 0.4, "decode": 0.5}, ("bfloat16",) * 3),
        ({"encoder": 0.9, "prefill": 0.4, "decode": 0.85}, ("float32", "bfloat16", "float32")),
        ({"encoder": 3.0, "prefill": 3.0, "decode": 1.5}, ("float32",) * 3),
        ({}, ("float32",) * 3),
    ],
    ids=["units-for-bfloat16", "small-gains", "emulated-and-slower", "no-kernels"],
)
def test_a_phase_gets_bfloat16_where_it_is_clearly_faster(
    bfloat16_s: dict[probe.Phase, float], chosen: tuple[str, ...], tmp_path: Path
) -> None:
    def timed(phase: probe.Phase, shape: tuple[int, int]) -> probe.Times:
        assert shape == LARGE[phase]
        return {"float32": 1.0, **({"bfloat16": bfloat16_s[phase]} if phase in bfloat16_s else {})}

    assert tuple(probe.faster_precisions(LARGE, timed, tmp_path / "a" / "c.json").values()) == chosen


def test_the_choice_is_measured_once_and_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    def timed(phase: probe.Phase, shape: tuple[int, int]) -> probe.Times:
        asked.append(phase)
        return {"float32": 1.0, "bfloat16": 0.5}

    path = tmp_path / "compute.json"
    first = probe.faster_precisions(LARGE, timed, path)
    assert asked == ["encoder", "prefill", "decode"]
    assert probe.faster_precisions(LARGE, timed, path) == first
    assert len(asked) == 3
    (key,) = json.loads(path.read_text())
    assert f"x{torch.get_num_threads()} torch {torch.__version__}" in key
    path.write_text(json.dumps({key: {"encoder": "float32", "prefill": "bfloat16", "decode": "float32"}}))
    assert probe.faster_precisions(LARGE, timed, path)["encoder"] == "float32"
    path.write_text("{")  # cut by a full disk: measured anew
    assert probe.faster_precisions(LARGE, timed, path) == first
    assert list(json.loads(path.read_text())) == [key]


def test_small_models_and_missing_parts_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path))

    def timed(phase: probe.Phase, shape: tuple[int, int]) -> probe.Times:
        raise AssertionError(phase)

    assert compute.set_compute(tiny_qwen2_audio(seed=2), "auto", measure=timed) == compute.FLOAT32
    assert compute.measured_plan(None, None, timed) == compute.FLOAT32


def test_a_machine_is_measured_in_a_moment() -> None:
    times = probe.measure("decode", (1024, 512))
    assert times["float32"] > 0
    assert ("bfloat16" in times) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.no_grad()
def test_a_model_that_only_answers_keeps_packed_weights_alone() -> None:
    model, kept = tiny_qwen2_audio(seed=2), tiny_qwen2_audio(seed=2)
    compute.apply(kept, compute.BFLOAT16)
    expected = sampled(kept)
    assert compute.set_compute(model, "bfloat16", for_answers=True) == compute.BFLOAT16
    decoder = model.parameter_prefixes["decoder"][0]
    matrices = [name for name, value in model.module.named_parameters() if name.startswith(decoder) and value.ndim > 1]
    assert all("embed" in name for name in matrices)
    assert sampled(model) == expected
    assert compute.set_compute(model, "auto") == compute.BFLOAT16
    with pytest.raises(ModelError, match="is in bfloat16, its float32 weights are gone; load it again"):
        compute.set_compute(model, "float32")


def test_what_cannot_act_is_refused() -> None:
    model = tiny_qwen2_audio(seed=2)
    with pytest.raises(ModelError, match="compute 'int4' is none of float32, bfloat16, int8, auto"):
        compute.set_compute(model, "int4")
    low = copy.copy(model)
    low.module = copy.deepcopy(model.module).bfloat16()
    with pytest.raises(ModelError, match="compute bfloat16 is for float32 weights on a CPU"):
        compute.set_compute(low, "bfloat16")
    assert compute.set_compute(low, "auto") == compute.FLOAT32


@pytest.mark.weights
def test_the_default_model_answers_the_same_in_bfloat16() -> None:
    """Greedy answers to real questions about real clips, through the front door."""
    items = [example for example in manifest.read(manifest_path("starter:val", Path())) if example.choices][:12]
    exact, fast = (earwise.load("embedded", compute=choice) for choice in ("float32", "bfloat16"))
    assert fast.engine.revision == f"{exact.engine.revision}+bfloat16"
    answers = [
        [
            model.ask([clip.path for clip in item.clips], item.question, choices=item.choices, probabilities=True)
            for item in items
        ]
        for model in (exact, fast)
    ]
    equal = [a.answer == b.answer for a, b in zip(*answers, strict=True)]
    assert sum(equal) >= len(items) - 1
    for a, b in zip(*answers, strict=True):
        assert max(abs(a.probabilities[option] - b.probabilities[option]) for option in a.probabilities) < 0.1
