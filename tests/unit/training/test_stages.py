"""Stages on a tiny random Qwen2-Audio: the loss falls, the policy changes, a resumed run equals an uninterrupted one
bit for bit."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from builders import tiny_qwen2_audio
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.stages import TrainableConfig
from earwise.data import manifest
from earwise.errors import ConfigError, DataError, ModelError
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training import checkpoints, run
from earwise.training.batches import group_by_clips
from earwise.training.trainable import Reference, set_trainable, trains_encoder
from earwise.types import Audio, Example, Text, Turn
from resumed import assert_same_result, final_weights, metrics_rows, run_interrupted_and_whole


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Six clips of three pitches, two questions each."""
    examples = []
    for number in range(6):
        hertz, name = [(200, "low"), (800, "mid"), (3000, "high")][number % 3]
        t = np.arange(8000 + 800 * number) / 16000
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(2 * np.pi * hertz * t), 16000)
        for question in ("pitch?", "how high?"):
            turns = (Turn("user", (Audio(f"{number}.wav"), Text(question))),)
            examples.append(
                Example(
                    f"{number}{question}",
                    turns,
                    (name,),
                    ("low", "mid", "high"),
                    root=tmp_path,
                    category="tone",
                    group=str(number),
                )
            )
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path / "rows.jsonl"


def recipe(stage: dict, **top: object) -> Recipe:
    data = {"mixture": [{"manifest": "rows.jsonl"}]}
    common = {
        "data": data,
        "save_steps": 2,
        "pack_tokens": 400,
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "full"},
    }
    return check_recipe(
        {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5, "stages": [common | stage], **top}, "test"
    )


SFT = {
    "kind": "sft",
    "max_steps": 6,
    "clips_per_step": 3,
    "questions_per_clip": 2,
    "optimizer": {"learning_rate": 1e-2, "lr_scheduler_type": "constant"},
}
GRPO = {"kind": "grpo", "max_steps": 5, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 5,
        "rewards": {f"{__name__}:likes_e": 1.0},
        "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "linear"}}  # fmt: skip


CONFIDENT = GRPO | {
    "max_new_tokens": 12,
    "pause": {"token": '"', "max_pauses": 2, "tokens_per_pause": 2, "mask_pause_tokens": True},
    "confidence": {"top_p_keep": 0.5, "window_size": 4, "stride": 1, "weight_advantages": True, "recovery_bonus": 0.1},
    "log_completions_steps": 1,
}


def likes_e(_: Example, completion: str) -> float:
    """A reward that a byte model can earn: the number of frequent letters."""
    return float(sum(character in "etaoinshrdlu" for character in completion))


def test_sft_lowers_the_loss_and_logs_every_step(rows: Path) -> None:
    out = rows.parent / "run"
    run.start(recipe(SFT), out, rows.parent)
    losses = [row["sft/loss"] for row in metrics_rows(out)]
    assert [row["step"] for row in metrics_rows(out)] == [1, 2, 3, 4, 5, 6]
    assert losses[-1] < 0.7 * losses[0]
    assert metrics_rows(out)[0]["sft/distinct_share"] < 0.9  # two questions share a clip


@pytest.mark.parametrize(
    "stage", [SFT, GRPO, GRPO | {"num_iterations": 2, "max_steps": 6}, SFT | {"trainable": {"decoder": "lora"}}]
)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(rows: Path, stage: dict) -> None:
    if stage.get("trainable"):
        pytest.importorskip("peft")
    run_interrupted_and_whole(recipe(stage), rows.parent, after=3)


def test_pauses_and_confidence_act_and_survive_an_interruption(rows: Path) -> None:
    """The first step has no entropies to compare with. Texts are without pause tokens."""
    _, out = run_interrupted_and_whole(recipe(CONFIDENT), rows.parent, after=3)
    logged = metrics_rows(out)
    assert logged[0]["grpo/pauses"] == 0 and "grpo/pause_entropy" not in logged[0]
    assert all(0 < row["grpo/pauses"] <= 2 and row["grpo/pause_entropy"] > 0 for row in logged[1:])
    assert all(0 < row["grpo/confidence"] < 1 and row["grpo/recovery_bonus"] >= 0 for row in logged)
    samples = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    assert len(samples) == 10 and not any('"' in text for row in samples for text in row["completions"])


@pytest.mark.parametrize("stage", [SFT, GRPO | {"num_iterations": 2, "max_steps": 6, "log_completions_steps": 1}])
def test_ctrl_c_finishes_the_step_and_saves_it(rows: Path, stage: dict) -> None:
    whole, stopped = rows.parent / "whole", rows.parent / "stopped"
    previous_handler = signal.getsignal(signal.SIGINT)
    resolved = recipe(stage | {"save_steps": 100})
    run.start(resolved, whole, rows.parent)
    messages: list[str] = []

    def interrupt(line: str) -> None:
        messages.append(line)
        if "step 3/" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run.start(resolved, stopped, rows.parent, notify=interrupt)
    assert len(metrics_rows(stopped)) == (3 if stage is SFT else 4), "all updates of a rollout are finished first"
    assert messages[-1].endswith(f"stopped after step {len(metrics_rows(stopped))}, saved; continue with --resume")
    if stage is not SFT:  # a row that a process killed in the middle of the next step would have left
        with (stopped / "rollouts.jsonl").open("a") as handle:
            handle.write(json.dumps({"stage": "stage-0-grpo", "step": 5, "id": "lost"}) + "\n")
    run.resume(stopped)
    assert_same_result(stopped, whole)
    if stage is not SFT:
        assert (stopped / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()
    assert signal.getsignal(signal.SIGINT) is previous_handler


def never(_: Example, completion: str) -> float:
    """A reward that no completion earns."""
    return 0.0


def test_flat_groups_are_left_out_only_where_that_is_exact(rows: Path) -> None:
    """Without a KL term a flat group has no gradient, but bnpo counts its tokens. The checks before training wait for
    the first step that has micro-batches."""
    messages: list[str] = []
    flat = GRPO | {"rewards": {f"{__name__}:never": 1.0}, "beta": 0.0, "max_steps": 2}
    run.start(recipe(flat), rows.parent / "flat", rows.parent, notify=messages.append)
    assert [row["grpo/tokens"] for row in metrics_rows(rows.parent / "flat")] == [0, 0]
    assert not any(line.startswith("checks:") for line in messages)
    run.start(recipe(flat | {"loss_type": "bnpo"}), rows.parent / "bnpo", rows.parent, notify=messages.append)
    assert all(row["grpo/tokens"] > 0 for row in metrics_rows(rows.parent / "bnpo"))
    assert sum(line.startswith("checks:") for line in messages) == 1


def test_grpo_changes_the_policy_and_not_the_reference(rows: Path) -> None:
    out = rows.parent / "run"
    run.start(recipe(GRPO | {"max_steps": 8}), out, rows.parent)
    logged = metrics_rows(out)
    assert logged[0]["grpo/kl"] == pytest.approx(0, abs=1e-9)
    assert logged[-1]["grpo/kl"] > 1e-5
    assert logged[0]["grpo/flat_groups"] < 1
    start, end = dict(load().module.named_parameters()), final_weights(out)
    assert any(not torch.equal(start[name], end[name]) for name in start)
    samples = (out / "rollouts.jsonl").read_text().splitlines()
    assert len(json.loads(samples[0])["completions"]) == 4


def test_second_start_in_a_folder_is_refused_and_resuming_a_finished_run_changes_nothing(rows: Path) -> None:
    out = rows.parent / "run"
    run.start(recipe(SFT | {"max_steps": 1}), out, rows.parent)
    with pytest.raises(ConfigError, match="--resume"):
        run.start(recipe(SFT), out, rows.parent)
    metrics = (out / "metrics.jsonl").read_bytes()
    assert run.resume(out) == out / "final"
    assert (out / "metrics.jsonl").read_bytes() == metrics


def test_nonfinite_loss_stops_the_run_and_keeps_the_checkpoint(rows: Path) -> None:
    out = rows.parent / "run"
    diverging = SFT | {"optimizer": {"learning_rate": 1e30, "lr_scheduler_type": "constant"}, "save_steps": 1}
    with pytest.raises(ModelError, match="step"):
        run.start(recipe(diverging), out, rows.parent)
    assert checkpoints.list_checkpoints(out / "stage-0-sft")


def test_unreadable_clip_stops_the_run_or_is_skipped_as_the_recipe_says(rows: Path) -> None:
    (rows.parent / "1.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(Exception, match=r"1\.wav"):
        run.start(recipe(SFT), rows.parent / "stop", rows.parent)
    skipping = recipe(SFT).model_dump(mode="json")
    skipping["stages"][0]["data"]["on_bad_row"] = "skip"
    messages: list[str] = []
    run.start(check_recipe(skipping, "t"), rows.parent / "skip", rows.parent, notify=messages.append)
    assert any(line.startswith("skipped") and "1.wav" in line for line in messages)
    assert sum(row["sft/skipped"] for row in metrics_rows(rows.parent / "skip")) >= 1


def test_where_that_matches_nothing_names_the_manifest(rows: Path) -> None:
    resolved = recipe(SFT).model_dump(mode="json")
    resolved["stages"][0]["data"]["mixture"][0]["where"] = {"category": "music"}
    with pytest.raises(DataError, match=r"rows\.jsonl.*music"):
        run.start(check_recipe(resolved, "t"), rows.parent / "x", rows.parent)


def test_reference_equals_the_start_after_training() -> None:
    model = tiny_qwen2_audio(1)
    set_trainable(model, TrainableConfig(connector="full", decoder="lora"))
    ids, reference = torch.tensor([1, 2, 3]), Reference(model.module)
    encoder_states = model.encode_audio([np.ones(4000, np.float32)])
    start = model.project_audio(encoder_states)[0].clone()
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    trained = model.project_audio(encoder_states)[0]
    with reference.active():
        assert torch.equal(model.project_audio(encoder_states)[0], start)
    assert torch.equal(model.project_audio(encoder_states)[0], trained)
    assert not torch.equal(start, trained)
    assert model.embed(ids).shape[0] == 3
    assert not trains_encoder(model)


def test_rows_are_grouped_by_their_clips() -> None:
    def row(name: str, audio: str) -> Example:
        return Example(name, (Turn("user", (Audio(audio), Text("?"))),))

    assert [
        [example.id for example in group] for group in group_by_clips([row("a", "x"), row("b", "y"), row("c", "x")])
    ] == [
        ["a", "c"],
        ["b"],
    ]
