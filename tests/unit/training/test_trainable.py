"""All kinds of stages train the configured parts (encoder, connector, decoder), each at its own learning rate."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import Trainer

from builders import tiny_qwen2_audio
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.stages import LoraConfig, OptimizerConfig, TrainableConfig
from earwise.data import manifest
from earwise.errors import ConfigError, DataError
from earwise.models.base import load as load_model
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training import run, trainable
from earwise.training.check_recipe import check_training
from earwise.training.trainable import parameter_groups, set_trainable
from earwise.types import Audio, Example, Text, Turn
from resumed import final_weights, metrics_rows, run_interrupted_and_whole


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


def likes_e(_: Example, completion: str) -> float:
    """A reward that a byte model can earn: the number of frequent letters."""
    return float(sum(character in "etaoinshrdlu" for character in completion))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four clips with chains and wrong options."""
    examples = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(np.arange(9000) * 0.05 * (number + 1)), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        examples.append(Example(f"{number}", turns, ("low",), ("low", "high"), "It hums. It is slow.", root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path / "rows.jsonl"


PARTS = {
    "encoder": "model.audio_tower.", "connector": "model.multi_modal_projector.", "decoder": "model.language_model.",
}  # fmt: skip
MODES = [
    {"encoder": "full", "connector": "frozen", "decoder": "frozen"},
    {"encoder": "frozen", "connector": "full", "decoder": "frozen"},
    {"encoder": "frozen", "connector": "frozen", "decoder": "full"},
    {"encoder": "lora", "connector": "full", "decoder": "lora"},
    {"encoder": "full", "connector": "full", "decoder": "full"},
]
KINDS: dict[str, dict] = {
    "sft": {},
    "grpo": {"group_size": 4, "max_new_tokens": 5, "rewards": {f"{__name__}:likes_e": 1.0}},
    "dpo": {"negatives": "options"},
    "compress": {"steps_per_unit": 1},
    "gkd": {"teacher_context": "answer", "max_new_tokens": 5},
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("modes", MODES, ids=lambda modes: "-".join(modes.values()))
def test_every_stage_trains_the_configured_parts_and_no_others(rows: Path, kind: str, modes: dict) -> None:
    pytest.importorskip("peft")
    data = {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"think" if kind == "compress" else "answer": 1.0}}
    optimizer = {"lr_scheduler_type": "constant"} | ({} if modes["decoder"] == "frozen" else {"learning_rate": 1e-3})
    rates_of_parts = {"encoder": 1e-5, "connector": 1e-4}
    optimizer |= {f"{part}_learning_rate": rate for part, rate in rates_of_parts.items() if modes[part] != "frozen"}
    stage = {
        "kind": kind,
        "max_steps": 1,
        "pack_tokens": 600,
        "data": data,
        "trainable": modes,
        "optimizer": optimizer,
    } | KINDS[kind]
    raw = {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5, "stages": [stage]}
    run.start(check_recipe(raw, "test"), rows.parent / "run", rows.parent)
    before = dict(load().module.named_parameters())
    after = dict(load_model(str(rows.parent / "run"), device="cpu").module.named_parameters())
    largest_change = {
        part: max(float((after[name] - value).abs().max()) for name, value in before.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    is_trained = {part: mode != "frozen" for part, mode in modes.items()}
    assert {part: change > 0 for part, change in largest_change.items()} == is_trained
    # The first step of Adam changes a weight by its learning rate, except for rounding.
    rates = {"encoder": 1e-5, "connector": 1e-4, "decoder": 1e-3}
    for part, mode in modes.items():
        assert mode != "full" or largest_change[part] == pytest.approx(rates[part], rel=0.1)


def test_weight_decay_leaves_out_norms_and_biases() -> None:
    """The same parameters decay as in transformers' Trainer."""
    model = tiny_qwen2_audio(1)
    set_trainable(model, TrainableConfig(encoder="full", connector="full", decoder="full"))
    decaying = set(Trainer.get_decay_parameter_names(None, model.module))
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1, connector_learning_rate=0.2))
    assert sorted((group["lr"], group["weight_decay"]) for group in groups) == [
        (2e-4, 0.0), (2e-4, 0.1), (0.2, 0.0), (0.2, 0.1),
    ]  # fmt: skip
    for group in groups:
        assert all((names[id(p)] in decaying) == (group["weight_decay"] > 0) for p in group["params"])
    assert all(group["weight_decay"] == 0 for group in parameter_groups(model, OptimizerConfig()))


def test_learning_rates_of_parameter_groups() -> None:
    model = tiny_qwen2_audio(1)
    set_trainable(model, TrainableConfig(encoder="full", connector="full", decoder="full"))
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}

    def parts_by_rate(**rates: float) -> dict[float, set[str]]:
        groups = parameter_groups(model, OptimizerConfig(learning_rate=1.0, **rates))
        return {
            group["lr"]: {
                part
                for part, prefix in PARTS.items()
                for parameter in group["params"]
                if names[id(parameter)].startswith(prefix)
            }
            for group in groups
        }

    own_rates = parts_by_rate(encoder_learning_rate=0.1, connector_learning_rate=0.2)
    assert own_rates == {1.0: {"decoder"}, 0.1: {"encoder"}, 0.2: {"connector"}}
    assert parts_by_rate(connector_learning_rate=0.2) == {1.0: {"encoder", "decoder"}, 0.2: {"connector"}}
    assert parts_by_rate(encoder_learning_rate=0.1)[0.1] == {"encoder"}
    order = parameter_groups(model, OptimizerConfig())[0]["params"]
    expected = [
        parameter for name, parameter in model.module.named_parameters() if not name.startswith(PARTS["connector"])
    ]
    assert all(first is second for first, second in zip(order, expected, strict=True)), "the order in checkpoints"


def adapters(**settings: object) -> dict[str, Any]:
    """Name -> LoRA layer of a tiny model with LoRA on its decoder."""
    model = tiny_qwen2_audio(1)
    lora = LoraConfig(**{"r": 4, "lora_alpha": 8} | settings)  # type: ignore[arg-type]
    set_trainable(model, TrainableConfig(connector="frozen", lora=lora))
    return {name: layer for name, layer in model.module.named_modules() if hasattr(layer, "lora_A")}


def test_settings_of_lora_are_those_of_peft() -> None:
    """Ranks and scales by hand: alpha / r, alpha / sqrt(r) with rsLoRA, and those of a pattern."""
    layers = adapters(rank_pattern={r"layers\.0\.self_attn\.q_proj": 1}, alpha_pattern={"q_proj": 3.0})
    first, second = (layers[f"model.language_model.layers.{number}.self_attn.q_proj"] for number in (0, 1))
    assert (len(first.lora_A["default"].weight), first.scaling["default"]) == (1, 3.0)
    assert (len(second.lora_A["default"].weight), second.scaling["default"]) == (4, 0.75)
    others = [layer.scaling["default"] for name, layer in layers.items() if not name.endswith("q_proj")]
    assert set(others) == {2.0}
    assert {layer.scaling["default"] for layer in adapters(use_rslora=True).values()} == {4.0}
    dropouts = {layer.lora_dropout["default"].p for layer in adapters(lora_dropout=0.25).values()}
    assert dropouts == {0.25}


def test_targets_by_list_and_by_expression() -> None:
    assert {name.rsplit(".")[-1] for name in adapters(target_modules=("q_proj", "mlp.up_proj"))} == {
        "q_proj",
        "up_proj",
    }
    names = adapters(target_modules=r".*layers\.1\..*(k|v)_proj")
    assert set(names) == {f"model.language_model.layers.1.self_attn.{name}_proj" for name in "kv"}
    without = adapters(exclude_modules=("layers.0.mlp.down_proj", "q_proj"))
    assert "model.language_model.layers.1.mlp.down_proj" in without
    assert not any(name.endswith(("q_proj", "layers.0.mlp.down_proj")) for name in without)
    assert adapters(target_modules=("lm_head",)).keys() == {"lm_head"}  # a head of its own may be named
    with pytest.raises(ConfigError, match=r"'\(' is no regular expression"):
        adapters(target_modules="(")
    with pytest.raises(ConfigError, match=r"'q_proj' match no layer of the decoder .* q_proj, k_proj"):
        adapters(target_modules="q_proj")  # an expression for whole names, as in PEFT


def dropout_recipe(seed: int = 5, **settings: object) -> Recipe:
    """Three steps of SFT with LoRA dropout."""
    stage = {
        "kind": "sft",
        "max_steps": 3,
        "save_steps": 1,
        "clips_per_step": 2,
        "data": {"mixture": [{"manifest": "rows.jsonl"}]},
        "trainable": {"connector": "frozen", "lora": {"r": 2, "lora_dropout": 0.5}},
    }
    raw = {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": seed, "stages": [stage | settings]}
    return check_recipe(raw, "test")


def test_dropout_acts_and_is_drawn_again_after_a_resume(rows: Path) -> None:
    _, whole = run_interrupted_and_whole(dropout_recipe(), rows.parent, 2)
    without = {"trainable": {"connector": "frozen", "lora": {"r": 2}}}
    run.start(dropout_recipe(**without), rows.parent / "without", rows.parent)
    losses, other_losses = ([row["sft/loss"] for row in metrics_rows(out)] for out in (whole, rows.parent / "without"))
    assert losses[0] == pytest.approx(other_losses[0], rel=1e-6), "B is zero before the first step"
    assert abs(losses[2] - other_losses[2]) > 1e-6


def test_recomputed_layers_draw_the_same_dropout(rows: Path) -> None:
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        run.start(dropout_recipe(gradient_checkpointing=checkpointing), rows.parent / name, rows.parent)
    plain, checkpointed = (final_weights(rows.parent / name) for name in ("plain", "checkpointed"))
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=1e-6)


def test_a_missing_manifest_is_advised_upon(tmp_path: Path) -> None:
    """What the small profiles need is made by one command; the advice never is the profile that is in use already."""
    for name, remedy in (("runs/data-demo/sari/rl.jsonl", "python -m earwise.apps.data_demo"), ("x.jsonl", "--data")):
        stage = {"kind": "sft", "data": {"mixture": [{"manifest": name}]}, "max_steps": 1}
        with pytest.raises(DataError, match=f"{name}: is not there; .*{remedy}") as error:
            check_training(check_recipe({"recipe": "t", "stages": [stage], "trackers": []}, "test"), tmp_path)
        assert "--profile cpu" not in str(error.value)


def test_only_the_warning_about_a_4_bit_kernel_is_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts are those of bitsandbytes 0.50.2, backends/cpu/ops.py."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])  # whatever other tests have set for all loggers
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "disabled", False)
    kernel = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure ..."

    def warn(message: str, *values: str) -> None:
        logger.handle(logger.makeRecord(logger.name, logging.WARNING, "ops.py", 1, message, values, None))

    with trainable._no_kernel_warning():
        warn(kernel, "No module named 'kernels'")
        warn("another warning")
    assert [record.getMessage() for record in caplog.records] == ["another warning"]
    warn(kernel, "No module named 'kernels'")
    assert len(caplog.records) == 2
