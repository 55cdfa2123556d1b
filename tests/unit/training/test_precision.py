"""Training on bfloat16 weights: float32 masters, LoRA that is not rounded away, and what the next stage starts from."""

import importlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from builders import tiny_qwen2_audio, tone
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import DataError
from earwise.models import base, checkpoint, lora_checkpoint
from earwise.models.base import AudioLM
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.precision import float32_values, lora_beside
from earwise.training import run
from earwise.training.policy import forest_tolerance
from earwise.types import Audio, Example, Text, Turn
from resumed import metrics_rows, run_interrupted_and_whole

FULL = {"encoder": "frozen", "connector": "full", "decoder": "full"}
LORA = {"encoder": "frozen", "connector": "full", "decoder": "lora", "lora": {"r": 4, "lora_alpha": 8.0}}
PITCHES = {"low": 200.0, "mid": 800.0, "high": 3000.0}


def load(_: Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Qwen2Audio:
    """The model of all recipes: the same bfloat16 weights in either dtype."""
    assert device == "cpu"
    model = tiny_qwen2_audio(3)
    for parameter in model.module.parameters():
        parameter.data = parameter.data.bfloat16().to(dtype)
    return model


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Folder with `rows.jsonl`: six tones with one question each."""
    folder = tmp_path / "rows"
    folder.mkdir()
    examples = []
    for number in range(6):
        name = list(PITCHES)[number % 3]
        soundfile.write(folder / f"{number}.wav", tone(0.4 + 0.05 * number, PITCHES[name], number), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        examples.append(Example(f"{number}", turns, (name,), tuple(PITCHES), root=folder))
    manifest.write(folder / "rows.jsonl", examples)
    return folder


def recipe(*stages: dict[str, Any], dtype: str = "bfloat16") -> Recipe:
    common = {
        "kind": "sft", "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "clips_per_step": 3, "pack_tokens": 200,
        "trainable": FULL, "log_completions_steps": 0, "max_steps": 10,
    }  # fmt: skip
    model = {"name": f"{__name__}:load", "dtype": dtype}
    return check_recipe({"recipe": "t", "model": model, "seed": 5, "stages": [common | s for s in stages]}, "test")


def train(rows: Path, out: Path, *stages: dict[str, Any], dtype: str = "bfloat16") -> Path:
    run.start(recipe(*stages, dtype=dtype), out, rows)
    return out / "final"


def change(values: dict[str, Tensor], start: dict[str, Tensor]) -> tuple[float, float]:
    """Share of the changed elements of trained weights, and the norm of the change."""
    differences = torch.cat([(value.float() - start[name].float()).flatten() for name, value in values.items()])
    return float((differences != 0).float().mean()), float(differences.norm())


@pytest.mark.parametrize("learning_rate", [1e-6, pytest.param(1e-5, marks=pytest.mark.slow)])
def test_full_training_changes_bfloat16_weights_as_it_changes_float32(
    rows: Path, tmp_path: Path, learning_rate: float
) -> None:
    stage = {"max_steps": 10, "optimizer": {"learning_rate": learning_rate, "lr_scheduler_type": "constant"}}
    start = dict(load().module.named_parameters())
    whole = dict(base.load(str(train(rows, tmp_path / "float32", stage, dtype="float32"))).module.named_parameters())
    final = train(rows, tmp_path / "bfloat16", stage)
    exact = float32_values.read(final)
    decoder = {name for name in start if name.startswith(("model.language_model.", "lm_head."))}
    assert decoder <= exact.keys()
    share, norm = change({name: exact[name] for name in decoder}, start)
    expected_share, expected_norm = change({name: whole[name] for name in decoder}, start)
    assert expected_share > 0.5
    assert share == pytest.approx(expected_share, rel=0.02)
    assert norm == pytest.approx(expected_norm, rel=0.02)
    rounded = dict(base.load(str(final)).module.named_parameters())
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in decoder), "final is what was trained"


@pytest.mark.parametrize("steps", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("trainable", [FULL, LORA], ids=["full", "lora"])
def test_loss_curves_of_both_precisions(rows: Path, tmp_path: Path, trainable: dict[str, Any], steps: int) -> None:
    rate = 6e-3 if steps < 100 else 2e-3
    stage = {"max_steps": steps, "trainable": trainable, "optimizer": {"learning_rate": rate}}
    losses = {}
    for dtype in ("float32", "bfloat16"):
        train(rows, tmp_path / dtype, stage, dtype=dtype)
        losses[dtype] = torch.tensor([row["sft/loss"] for row in metrics_rows(tmp_path / dtype)])
    assert losses["float32"][-5:].mean() < 0.9 * losses["float32"][:5].mean()
    assert float((losses["bfloat16"] - losses["float32"]).abs().mean()) < 0.02 * float(losses["float32"].mean())


def sft_loss(model: Qwen2Audio) -> float:
    """Mean log-likelihood of the answers, with fixed prompts, in nats."""
    engine = LocalEngine(model)
    prompts = [
        Prompt((Turn("user", (Audio("a.wav"), Text("pitch?"))),), (tone(0.5, hertz),)) for hertz in PITCHES.values()
    ]
    scores = engine.score(prompts, [list(PITCHES)] * 3)
    return -sum(sum(row) for row in scores) / sum(len(name) + 1 for name in PITCHES) / 3


def test_lora_on_bfloat16_weights_is_not_rounded_away(rows: Path, tmp_path: Path) -> None:
    """The loss of `final` is the same within 1e-3 nats whether its LoRA is merged in float32 or computed beside."""
    stage = {"trainable": LORA, "max_steps": 6, "optimizer": {"learning_rate": 3e-4, "lr_scheduler_type": "constant"}}
    final = train(rows, tmp_path / "run", stage)
    adapter = lora_checkpoint.read(final)
    changes = {name: float(value.abs().max()) for name, value in adapter.matrices.items() if name.endswith("lora_B")}
    assert max(changes.values()) < 5e-3
    beside = base.load(str(final))
    assert beside.module.lm_head.weight.dtype == torch.bfloat16
    assert set(lora_beside.attached(beside.module)) == set(adapter.matrices)
    merged = base.load(str(final), dtype="float32")
    assert not lora_beside.attached(merged.module)
    upcast = base.load(str(final))
    upcast.module.float()  # the same bfloat16 base, computed in float32, with the LoRA beside it
    assert sft_loss(upcast) == pytest.approx(sft_loss(merged), abs=1e-3)
    moved = sft_loss(load()) - sft_loss(merged)
    assert abs(moved) > 0.004
    start, rounded = dict(load().module.named_parameters()), checkpoint.merged_state_dict(beside.module)
    stem = "model.language_model.layers.0.self_attn.q_proj"
    whole_change = adapter.matrices[f"{stem}.lora_B"] @ adapter.matrices[f"{stem}.lora_A"]
    lost = (rounded[f"{stem}.weight"].float() - start[f"{stem}.weight"] - whole_change).norm() / whole_change.norm()
    assert float(lost) > 0.2, "otherwise the test shows nothing"


def test_stages_after_one_another_lose_nothing(rows: Path, tmp_path: Path) -> None:
    """LoRA, LoRA, then full training: each goes on from what the one before has trained, exactly."""
    slow = {"optimizer": {"learning_rate": 1e-5, "lr_scheduler_type": "constant"}, "max_steps": 3}
    stages = [{"name": name, "trainable": LORA} | slow for name in ("one", "two")] + [{"name": "three"} | slow]
    out = tmp_path / "run"
    train(rows, out, *stages)
    first, second = (lora_checkpoint.read(out / f"stage-{number}" / "final") for number in ("0-one", "1-two"))
    stem = "model.language_model.layers.1.mlp.up_proj"
    assert len(first.matrices[f"{stem}.lora_A"]) == 4 and len(second.matrices[f"{stem}.lora_A"]) == 8
    assert torch.equal(second.matrices[f"{stem}.lora_A"][:4], first.matrices[f"{stem}.lora_A"])
    assert (out / "stage-0-one" / "final" / "base" / "config.json").is_file()
    assert second.base == "../../stage-0-one/final/base"
    connector = "model.multi_modal_projector.linear.weight"
    starts = [dict(load().module.named_parameters())[connector], first.full_parameters[connector]]
    after = [first.full_parameters[connector], second.full_parameters[connector]]
    for start, value in zip(starts, after, strict=True):
        assert 0 < float((value - start).abs().max()) < 4e-5
    exact = float32_values.read(out / "final")
    merged = second.matrices[f"{stem}.lora_B"] @ second.matrices[f"{stem}.lora_A"]
    unrounded = dict(load().module.named_parameters())[f"{stem}.weight"] + merged
    assert 0 < float((exact[f"{stem}.weight"] - unrounded).abs().max()) < 4e-5
    assert 0 < float((exact[connector] - after[1]).abs().max()) < 4e-5
    assert base.load(str(out)).module.model.multi_modal_projector.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("trainable", [FULL, LORA], ids=["full", "lora"])
def test_resumed_run_equals_uninterrupted_run(rows: Path, trainable: dict[str, Any]) -> None:
    stage = {"trainable": trainable, "max_steps": 4, "save_steps": 1}
    runs = run_interrupted_and_whole(recipe(stage), rows, after=2)
    stopped, whole = (
        float32_values.read(out / "final") | dict(lora_beside.attached(base.load(str(out)).module)) for out in runs
    )
    assert stopped.keys() == whole.keys() and len(stopped) > 4
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_adamw_8bit_follows_adamw_and_resumes(rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    stage = {"max_steps": 4, "save_steps": 1, "optimizer": {"optim": "adamw_8bit", "learning_rate": 1e-3}}
    (_, whole) = run_interrupted_and_whole(recipe(stage), rows, after=2)
    exact = float32_values.read(whole / "final")
    train(rows, tmp_path / "adamw", {"max_steps": 4, "optimizer": {"learning_rate": 1e-3}})
    expected, start = float32_values.read(tmp_path / "adamw" / "final"), dict(load().module.named_parameters())
    name = "model.language_model.embed_tokens.weight"  # large enough for 8-bit moments
    assert (exact[name] - start[name]).norm() == pytest.approx(float((expected[name] - start[name]).norm()), rel=0.05)
    with pytest.raises(DataError, match=r"optimizer\.optim"):
        change_recorded_optimizer(whole, optim="adamw")
        run.resume(whole)


def change_recorded_optimizer(out: Path, **settings: Any) -> None:
    """Edit the recipe of a run as a user would, and have its last stage go on."""
    record = json.loads((out / "recipe.json").read_text())
    record["recipe"]["stages"][0] |= {"max_steps": 6}
    record["recipe"]["stages"][0]["optimizer"] |= settings
    (out / "recipe.json").write_text(json.dumps(record))
    (out / "final").unlink()
    shutil.rmtree(out / "stage-0-sft" / "final")


def test_optimizer_settings_edited_before_a_resume_act(rows: Path, tmp_path: Path) -> None:
    stage = {"max_steps": 4, "optimizer": {"weight_decay": 0.01, "betas": [0.9, 0.99], "learning_rate": 1e-3}}
    train(rows, tmp_path / "run", stage)
    shutil.copytree(tmp_path / "run", tmp_path / "edited", symlinks=True)
    change_recorded_optimizer(tmp_path / "run")
    change_recorded_optimizer(tmp_path / "edited", weight_decay=5.0, betas=[0.5, 0.99])
    norms = []
    for out in (tmp_path / "run", tmp_path / "edited"):
        run.resume(out)
        assert [row["step"] for row in metrics_rows(out)] == [1, 2, 3, 4, 5, 6]
        norms.append(float(float32_values.read(out / "final")["lm_head.weight"].norm()))
    assert norms[1] < 0.999 * norms[0], "5 x 1e-3 x (1/3 + 1/6) is a quarter of a percent"


def test_checkpoint_of_another_device_is_read(rows: Path, tmp_path: Path) -> None:
    """A checkpoint that says that its tensors were on a CUDA device, read where there is none."""
    stage = {"max_steps": 2}
    train(rows, tmp_path / "run", stage)
    (checkpoint,) = (tmp_path / "run" / "stage-0-sft").glob("checkpoint-*")
    moved = checkpoint / "moved.pt"
    with zipfile.ZipFile(checkpoint / "state.pt") as source, zipfile.ZipFile(moved, "w") as target:
        for item in source.infolist():
            content = source.read(item)
            if item.filename.endswith("data.pkl"):
                on_cuda = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert on_cuda != content
                content = on_cuda
            target.writestr(item.filename, content)
    moved.rename(checkpoint / "state.pt")
    change_recorded_optimizer(tmp_path / "run")
    run.resume(tmp_path / "run")
    assert [row["step"] for row in metrics_rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("name", "dtype"), [("salmonn", torch.float16), ("mellow", torch.bfloat16)])
def test_models_of_mixed_dtypes_are_checked_and_trained(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """Encoders and connector in float32, the decoder in a lower precision, as a converted SALMONN is stored."""

    def mixed(_: Path | None = None, *, device: str = "cpu") -> AudioLM:
        model = importlib.import_module(f"families.{name}").tiny(0).model
        for parameter_name, parameter in model.module.named_parameters():
            if parameter_name.startswith(model.parameter_prefixes["decoder"]):
                parameter.data = parameter.data.to(dtype)
        return model

    monkeypatch.setattr(sys.modules[__name__], "load", mixed)
    stage = {"max_steps": 6, "trainable": FULL, "data": {"mixture": [{"manifest": "rows.jsonl"}]}}
    raw = recipe(stage).model_dump(mode="json")
    raw["model"]["dtype"] = None
    run.start(check_recipe(raw, "test"), tmp_path / "run", rows)
    losses = [row["sft/loss"] for row in metrics_rows(tmp_path / "run")]
    assert min(losses[3:]) < min(losses[:2]), "the rows of a step differ, so single steps may be worse"
    assert forest_tolerance(mixed().module) == {torch.float16: 0.1, torch.bfloat16: 0.5}[dtype]


def test_policy_of_lora_is_what_is_loaded(rows: Path, tmp_path: Path) -> None:
    """An answer of `final` after a move of the run is that before."""
    final = train(rows, tmp_path / "run", {"trainable": LORA, "max_steps": 2})
    prompt = Prompt((Turn("user", (Audio("a.wav"), Text("pitch?"))),), (tone(0.5),))

    def answer(folder: Path) -> tuple[int, ...]:
        return LocalEngine(base.load(str(folder))).generate([prompt], SamplingParams(8))[0][0].token_ids

    before = answer(final)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert answer(tmp_path / "moved") == before
    assert json.loads((tmp_path / "moved" / "final" / "earwise.json").read_text()) == {"family": "qwen2_audio"}
