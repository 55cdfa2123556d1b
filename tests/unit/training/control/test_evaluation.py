"""Evaluation during a stage: figures by hand, the best checkpoint, early stopping, and that it changes no weights."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import hf_copy, hf_logprobs, tiny_qwen2_audio, tone
from earwise.apps.recipe_run import TrainOptions, check_run, resume_run, train_recipe
from earwise.audio import decode, encode_ogg
from earwise.config.control.run_control import EvalConfig
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError, DataError
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import prompt_turns, target_text
from earwise.training import checkpoints, run
from earwise.training.control.evaluation import AnswerRequest
from earwise.training.control.model_selection import ModelSelection
from earwise.training.logging.run_status import describe_status, run_status
from earwise.types import Audio, Example, Text, Turn
from resumed import assert_same_result, final_weights, metrics_rows

STAGE = "stage-0-sft"


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below."""
    return tiny_qwen2_audio(3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four rows to train on and three to measure on, of two kinds, each about a clip of its own."""
    for name, numbers in (("train", range(4)), ("val", range(4, 7))):
        examples = []
        for number in numbers:
            (tmp_path / f"{number}.ogg").write_bytes(encode_ogg(tone(0.3 + 0.05 * number, 250.0 * (number + 1)), 16000))
            turns = (Turn("user", (Audio(f"{number}.ogg"), Text("pitch?"))),)
            answer = ("low", "high")[number % 2]
            examples.append(Example(f"{number}", turns, (answer,), ("low", "high"), root=tmp_path, split=name))
        manifest.write(tmp_path / f"{name}.jsonl", examples)
    return tmp_path


def recipe(**settings: Any) -> Recipe:
    stage = {
        "kind": "sft", "max_steps": 6, "clips_per_step": 2, "save_steps": 100,
        "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
        "data": {"mixture": [{"manifest": "train.jsonl"}]}, "trainable": {"decoder": "full"},
        "eval_dataset": {"manifest": "val.jsonl", "max_new_tokens": 4}, "eval_steps": 2,
    }  # fmt: skip
    stage |= settings
    stage = {name: value for name, value in stage.items() if value is not None}
    top = {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5, "trackers": []}
    return check_recipe(top | {"stages": [stage]}, "test")


def train(resolved: Recipe, folder: Path, name: str, **options: Any) -> Path:
    return train_recipe(resolved, folder, folder / name, **options).out


def evaluations(out: Path) -> list[dict[str, Any]]:
    """Rows of evaluations.jsonl without their duration."""
    rows = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def mean_loss(model: Qwen2Audio, folder: Path) -> float:
    """Mean negative log-likelihood per token of the held-out replies, by transformers' own forward pass."""
    module, logprobs = hf_copy(model), []
    for row in manifest.read(folder / "val.jsonl"):
        waveform = decode(row.audio_paths[0], 16000)
        prompt = conversation_path(model, prompt_turns(row, "answer"), range(1), (len(waveform),), generate=True)
        path = prompt + answer_path(model, target_text(row, "answer"))
        with torch.no_grad():
            logprobs.append(hf_logprobs(module, path, {0: waveform}))
    return -float(torch.cat(logprobs).mean())


def test_evaluations_come_every_eval_steps_and_at_the_end(folder: Path) -> None:
    out = train(recipe(max_steps=5), folder, "run")
    rows = evaluations(out)
    assert [(row["step"], row["stage"]) for row in rows] == [(2, STAGE), (4, STAGE), (5, STAGE)]
    assert rows[0].keys() >= {"loss", "n", "accuracy", "format", "official"} and rows[0]["n"] == 3
    samples = (out / "eval" / STAGE / "step-4" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 3
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_loss_is_that_of_the_replies_and_the_last_one_that_of_the_final_model(folder: Path) -> None:
    out = train(recipe(predict_with_generate=False, max_steps=3), folder, "run")
    final, weights = tiny_qwen2_audio(3), final_weights(out)
    with torch.no_grad():
        for name, parameter in final.module.named_parameters():
            parameter.copy_(weights[name])
    assert evaluations(out)[-1]["loss"] == pytest.approx(mean_loss(final, folder), abs=2e-5)


def test_evaluations_change_nothing_in_the_training(folder: Path) -> None:
    without = {"eval_dataset": None, "eval_steps": None}
    plain, evaluated = train(recipe(**without), folder, "plain"), train(recipe(), folder, "evaluated")
    assert_same_result(plain, evaluated)


@pytest.mark.parametrize("after", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"load_best_model_at_end": True}], ids=["last", "best"])
def test_interrupted_run_has_the_same_evaluations(folder: Path, settings: dict[str, Any], after: int) -> None:
    whole = train(recipe(**settings), folder, "whole")

    def interrupt(line: str) -> None:
        if f"step {after}/" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe(**settings), folder, "stopped", notify=interrupt)
    resume_run(folder / "stopped")
    assert_same_result(folder / "stopped", whole)
    assert evaluations(folder / "stopped") == evaluations(whole)


def test_interrupt_within_an_evaluation_loses_no_step(folder: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("sft evaluation after step 4"):
            raise KeyboardInterrupt

    whole = train(recipe(), folder, "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), folder, "stopped", notify=interrupt)
    assert [path.name for path in checkpoints.list_checkpoints(folder / "stopped" / STAGE)] == ["checkpoint-4"]
    resume_run(folder / "stopped")
    assert_same_result(folder / "stopped", whole)
    assert evaluations(folder / "stopped") == evaluations(whole)


@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_cluster_that_ends_the_run_around_an_evaluation_does_not_wait_for_it(folder: Path, moment: str) -> None:
    """The finished steps are saved at once; the evaluation, which may take minutes, is made after the resume."""
    messages: list[str] = []

    def end(line: str) -> None:
        messages.append(line)
        if "step 4/" in line and moment == "before":
            os.kill(os.getpid(), signal.SIGTERM)

    def end_once(request: AnswerRequest) -> dict[str, float]:
        if moment == "within" and request.folder.name == "step-4" and not ended:
            ended.append(request.folder.name)
            os.kill(os.getpid(), signal.SIGTERM)
        return {"accuracy": 1.0}

    ended: list[str] = []
    options = run.RunOptions(answer_evaluator=end_once)
    run.start(recipe(), folder / "whole", folder, options=run.RunOptions(answer_evaluator=lambda _: {"accuracy": 1.0}))
    with pytest.raises(KeyboardInterrupt):
        run.start(recipe(), folder / "stopped", folder, options=options, notify=end)
    assert [path.name for path in checkpoints.list_checkpoints(folder / "stopped" / STAGE)] == ["checkpoint-4"]
    assert [row["step"] for row in evaluations(folder / "stopped")] == [2]
    run.resume(folder / "stopped", options=options)
    assert_same_result(folder / "stopped", folder / "whole")
    assert evaluations(folder / "stopped") == evaluations(folder / "whole")


def test_status_says_what_the_process_does_what_was_measured_and_why_it_ended(folder: Path) -> None:
    resolved = recipe().model_copy(update={"eval": (EvalConfig(manifest="val.jsonl", max_new_tokens=4),)})
    activities: list[str] = []

    def look(line: str) -> None:
        activities.append(run_status(folder / "run").activity)
        if "step 3/" in line and len(activities) < 9:
            raise DataError("a reason")

    with pytest.raises(DataError):
        train(resolved, folder, "run", notify=look)
    assert {"measuring val.jsonl before training", "training", "evaluating on val.jsonl after step 2"} >= {*activities}
    assert activities[-1] == "training" and run_status(folder / "run").ended == "a reason"
    assert "  ended       a reason" in describe_status(run_status(folder / "run"))
    resume_run(folder / "run")
    status = run_status(folder / "run")
    assert (status.state, status.ended) == ("finished", None)
    (line,) = (line for line in describe_status(status) if "measured" in line)
    assert line.startswith("  measured    val.jsonl: 0.") and line.count("(n 3, blind") == 2


def test_best_checkpoint_is_kept_and_its_weights_are_the_result(folder: Path) -> None:
    """With a far too high learning rate the first evaluation is the best one."""
    worse = {"optimizer": {"learning_rate": 0.3, "lr_scheduler_type": "constant"}, "eval_steps": 1, "save_steps": 2,
             "predict_with_generate": False, "max_steps": 4}  # fmt: skip
    messages: list[str] = []
    out = train(recipe(**worse, load_best_model_at_end=True), folder, "best", notify=messages.append)
    rows = evaluations(out)
    best = min(rows, key=lambda row: row["loss"])
    assert best["step"] < 4, f"the test needs a run that gets worse: {rows}"
    assert [row["step"] for row in rows if row["best"]][-1] == best["step"]
    kept = [path.name for path in checkpoints.list_checkpoints(out / STAGE)]
    assert kept == [f"checkpoint-{best['step']}", "checkpoint-4"]
    saved = torch.load(out / STAGE / kept[0] / "state.pt", weights_only=True)["trained"]
    weights = final_weights(out)
    assert all(torch.equal(weights[name], value) for name, value in saved.items())
    assert any(f"the weights of step {best['step']} are taken" in line for line in messages)


def test_stage_ends_after_evaluations_without_improvement_and_is_finished(folder: Path) -> None:
    worse = {"optimizer": {"learning_rate": 0.3, "lr_scheduler_type": "constant"}, "eval_steps": 1, "max_steps": 40,
             "predict_with_generate": False, "early_stopping_patience": 3}  # fmt: skip
    messages: list[str] = []
    out = train(recipe(**worse), folder, "run", notify=messages.append)
    losses = [row["loss"] for row in evaluations(out)]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(metrics_rows(out)) == len(losses) == best + 1 + 3 < 40
    assert (out / "final" / "earwise.json").exists()
    assert any("3 evaluations in a row without a better loss" in line for line in messages)


def test_grpo_is_evaluated_by_its_answers_alone(folder: Path) -> None:
    grpo = {"kind": "grpo", "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 3, "clips_per_step": None,
            "max_steps": 4, "rewards": {f"{__name__}:length_of": 1.0}, "num_iterations": 2, "eval_steps": 1,
            "load_best_model_at_end": True}  # fmt: skip
    rows = evaluations(train(recipe(**grpo), folder, "run"))
    assert [row["step"] for row in rows] == [2, 4], "between the updates of a rollout nothing is evaluated"
    assert "loss" not in rows[0] and rows[0]["n"] == 3


def length_of(example: Example, text: str) -> float:
    """A reward that differs between completions."""
    return float(len(text))


def test_selection_by_hand() -> None:
    selection = ModelSelection("accuracy", greater_is_better=True, patience=2, threshold=0.1)
    assert [selection.observe(step, {"accuracy": value}) for step, value in enumerate((0.5, 0.55, 0.7, 0.6))] == [
        True, True, True, False
    ]  # fmt: skip
    assert (selection.best_step, selection.best_value, selection.without_improvement) == (2, 0.7, 1)
    assert not selection.should_stop
    assert not selection.observe(4, {"accuracy": 0.7}) and selection.should_stop
    loss = ModelSelection("loss", greater_is_better=False)
    assert [loss.observe(step, {"loss": value}) for step, value in enumerate((2.0, 3.0, 1.0))] == [True, False, True]
    other = ModelSelection("loss", greater_is_better=False)
    other.load_state_dict(loss.state_dict())
    assert other == loss


@pytest.mark.parametrize(
    ("settings", "is_greatest"),
    [({}, False), ({"greater_is_better": True}, True), ({"metric_for_best_model": "format"}, True)],
    ids=["error-rate", "setting", "other-metric"],
)
def test_an_error_rate_is_best_where_it_is_least(settings: dict[str, Any], is_greatest: bool) -> None:
    changes = {"metric_for_best_model": "wer_whisper", "early_stopping_patience": 1} | settings
    (config,) = recipe(**changes).stages
    selection = ModelSelection.of(config, {"accuracy", "wer", "wer_whisper"})
    assert selection.greater_is_better == is_greatest and ModelSelection.of(config).greater_is_better


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_steps": None}, "eval_dataset is never evaluated; set eval_steps"),
        ({"eval_dataset": None}, "eval_steps 2 does nothing here; set eval_dataset"),
        ({"greater_is_better": True}, "greater_is_better True does nothing here; set metric_for_best_model"),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold 0.1 does nothing here"),
        ({"metric_for_best_model": "accuracy", "predict_with_generate": False}, "accuracy needs answers"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**settings)


def test_unknown_metric_is_refused_before_training(folder: Path) -> None:
    with pytest.raises(ConfigError, match="metric_for_best_model 'acuracy' is not measured; did you mean 'accuracy'"):
        check_run(recipe(metric_for_best_model="acuracy"), folder)


def test_epochs_become_steps(folder: Path) -> None:
    """Four clips, two per step: 2.5 epochs are five steps; in grpo six prompts per step make one step an epoch."""
    resolved = recipe(max_steps=None, num_train_epochs=2.5)
    assert check_run(resolved, folder).stages[0].config.max_steps == 5
    assert len(metrics_rows(train(resolved, folder, "run", options=TrainOptions(evaluate=False)))) == 5
    grpo = recipe(kind="grpo", clips_per_step=None, max_steps=None, num_train_epochs=3, prompts_per_step=3)
    assert check_run(grpo, folder).stages[0].config.max_steps == math.ceil(3 * 4 / 3)


# Rows that are trained and measured on -------------------------------------------------------------------------------


def overlapping(folder: Path, **changes: Any) -> Recipe:
    """A recipe whose training manifest holds one of the rows to measure on, under another id and file name."""
    (folder / "copy.ogg").write_bytes((folder / "5.ogg").read_bytes())
    turns = (Turn("user", (Audio("copy.ogg"), Text(changes.pop("question", "Pitch?")))),)
    rows = [*manifest.read(folder / "train.jsonl"), Example("renamed", turns, ("low",), ("low", "high"), root=folder)]
    manifest.write(folder / "mixed.jsonl", rows)
    raw = recipe(data={"mixture": [{"manifest": "mixed.jsonl"}]}).model_dump(mode="json")
    return check_recipe(raw | changes, "test")


def test_row_that_is_trained_and_measured_on_stops_a_run(folder: Path) -> None:
    with pytest.raises(DataError, match=r"val\.jsonl: 1 of 3 rows .* measured row '5' is 'renamed'\); .*on_overlap"):
        train_recipe(overlapping(folder), folder, folder / "run")
    assert not (folder / "run").exists()


def test_overlap_is_only_reported_where_it_is_wanted(folder: Path) -> None:
    messages: list[str] = []
    check_run(overlapping(folder, on_overlap="warn"), folder, messages.append)
    assert sum(line.startswith("warning: val.jsonl: 1 of 3 rows") for line in messages) == 1


def test_another_question_about_a_clip_or_another_clip_is_no_overlap(folder: Path) -> None:
    check_run(overlapping(folder, question="How loud is it?"), folder)
    check_run(recipe(), folder)


@pytest.mark.parametrize("place", ["eval", "held_out"])
def test_every_measurement_is_compared(folder: Path, place: str) -> None:
    without = {"eval_dataset": None, "eval_steps": None}
    if place == "eval":
        raw = recipe(**without).model_dump(mode="json") | {"eval": [{"manifest": "train.jsonl"}]}
        resolved = check_recipe(raw, "test")
    else:
        chains = [replace(row, reasoning="It is one tone.") for row in manifest.read(folder / "train.jsonl")]
        manifest.write(folder / "chains.jsonl", chains)
        data = {"mixture": [{"manifest": "chains.jsonl"}], "styles": {"think": 1.0}}
        resolved = recipe(**without | {"kind": "compress", "data": data, "held_out": {"manifest": "chains.jsonl"}})
    with pytest.raises(DataError, match="4 of 4 rows to measure on are trained on too"):
        check_run(resolved, folder)
