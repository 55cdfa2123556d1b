"""Bad steps: spikes and losses that are not finite, judged by hand, and whole runs that skip, roll back and resume."""

import math
from pathlib import Path
from typing import Any

import pytest

from builders import tone
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError, ModelError
from earwise.training import checkpoints, run
from earwise.training.control.step_guard import MIN_STEPS, FailurePolicy, StepGuard
from earwise.types import Audio, Example, Text, Turn
from nan_model import NAN_MODEL, NAN_TEXT
from resumed import assert_same_result, metrics_rows, run_interrupted_and_whole


def guard_after(values: list[float], **policy: Any) -> StepGuard:
    """A guard that has accepted steps with these losses and gradient norms of 1."""
    guard = StepGuard(FailurePolicy(**policy))
    for value in values:
        assert guard.judge(value, 1.0)[0] == "accept"
    return guard


def test_spike_by_hand() -> None:
    """Losses 1 and 3 in turn have mean 2 and deviation 1: with three deviations the limit is 5."""
    losses = [1.0, 3.0] * (MIN_STEPS // 2)
    guard = guard_after(losses, on_loss_spike="skip", spike_std=3.0)
    assert guard.judge(5.0, 1.0) == ("accept", {})
    guard = guard_after(losses, on_loss_spike="skip", spike_std=3.0)
    assert guard.judge(5.01, 1.0) == ("skip", {"spike": 1.0})
    assert len(guard.history) == MIN_STEPS, "a spike is not counted among the accepted steps"
    assert guard.judge(2.0, 1.31) == ("skip", {"spike": 1.0}), "norms of 1 count with a deviation of at least 0.1"
    assert guard.judge(2.0, 1.29) == ("accept", {})
    assert guard.skipped_in_a_row == 0


def test_spikes_need_a_history_and_are_only_counted_by_default() -> None:
    assert guard_after([1.0] * (MIN_STEPS - 1), on_loss_spike="stop").judge(100.0, 1.0) == ("accept", {})
    guard = guard_after([1.0] * MIN_STEPS)
    assert guard.judge(100.0, 1.0) == ("accept", {"spike": 1.0})


@pytest.mark.parametrize("figures", [(math.nan, 1.0), (1.0, math.inf)])
def test_limits_of_skips_and_rollbacks(figures: tuple[float, float]) -> None:
    skipping = StepGuard(FailurePolicy(on_nonfinite_loss="skip", max_skipped_steps=2))
    assert [skipping.judge(*figures)[0] for _ in range(3)] == ["skip", "skip", "stop"]
    explained = skipping.explain(7, *figures, Path("run/stage-0-sft"), 4)
    assert "at step 7, 3 such steps in a row; lower optimizer.learning_rate or raise max_skipped_steps" in explained
    assert "run/recipe.json" in explained and "delete run/stage-0-sft/checkpoint-6 first: back to step 4" in explained
    returning = StepGuard(FailurePolicy(on_nonfinite_loss="rollback", max_rollbacks=1))
    assert returning.judge(*figures)[0] == "rollback"
    returning.rollbacks = 1
    assert returning.judge(*figures)[0] == "stop"
    assert "after 1 rollbacks; lower optimizer.learning_rate or raise max_rollbacks in" in returning.explain(
        1, *figures, Path("run/stage-0-sft"), 0
    )


def test_state_is_restored() -> None:
    guard = guard_after([1.0, 2.0], on_nonfinite_loss="skip")
    guard.judge(math.nan, 1.0)
    other = StepGuard(guard.policy)
    other.load_state_dict(guard.state_dict())
    assert other == guard


# Runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine rows about one clip each; training on row 4 gives NaN."""
    examples = []
    for number in range(9):
        (tmp_path / f"{number}.ogg").write_bytes(encode_ogg(tone(0.3, 200.0 * (number + 1)), 16000))
        question = f"pitch?{NAN_TEXT if number == 4 else ''}"
        turns = (Turn("user", (Audio(f"{number}.ogg"), Text(question))),)
        examples.append(Example(f"{number}", turns, ("low",), ("low", "high"), root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path


def recipe(**settings: Any) -> Recipe:
    stage = {
        "kind": "sft", "max_steps": 8, "clips_per_step": 1, "save_steps": 2, "optimizer": {"learning_rate": 3e-3},
        "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "trainable": {"decoder": "full"},
        "on_nonfinite_loss": "rollback",
    }  # fmt: skip
    top = {"recipe": "t", "model": {"name": NAN_MODEL}, "seed": 5, "trackers": []}
    return check_recipe(top | {"stages": [stage | settings]}, "test")


def test_rollback_leaves_the_rows_since_the_checkpoint_and_counts_itself(folder: Path) -> None:
    messages: list[str] = []
    run.start(recipe(), folder / "run", folder, notify=messages.append)
    rows = metrics_rows(folder / "run")
    assert [row["step"] for row in rows] == list(range(1, 9)), "every step is logged once"
    (line,) = [line for line in messages if "rollback 1" in line]
    counted = [row["step"] for row in rows if "sft/rollbacks" in row]
    assert len(counted) == 1 and f"back at step {counted[0] - 1} " in line
    assert (counted[0] - 1) % 2 == 0, "back at a checkpoint"
    assert "4" not in [row["ids"][0] for row in rows]
    assert all("sft/loss" in row for row in rows)
    assert any("1 rollbacks" in line for line in messages[-6:])


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_run_with_rollbacks_resumes_exactly(folder: Path, after: int) -> None:
    run_interrupted_and_whole(recipe(), folder, after=after)


def test_ctrl_c_between_checkpoints_does_not_move_where_a_rollback_leads(folder: Path) -> None:
    """Ctrl-C saves the running step; a later rollback must pass it by, as in a run that was never stopped."""
    import os
    import signal

    whole = folder / "whole"
    run.start(recipe(save_steps=100), whole, folder)
    bad_step = next(row["step"] for row in metrics_rows(whole) if "sft/rollbacks" in row)
    assert bad_step == 1, "back to the start, since no checkpoint was due"

    def interrupt(line: str) -> None:
        if "step 1/" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run.start(recipe(save_steps=100), folder / "stopped", folder, notify=interrupt)
    run.resume(folder / "stopped")
    assert_same_result(folder / "stopped", whole)


def test_too_many_rollbacks_end_the_run_with_the_checkpoint_kept(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"at step \d+, after 1 rollbacks;"):
        run.start(recipe(max_rollbacks=1, max_steps=40), folder / "run", folder)
    assert checkpoints.list_checkpoints(folder / "run" / "stage-0-sft")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_nonfinite_loss": "stop", "max_rollbacks": 5}, "max_rollbacks 5 does nothing here"),
        ({"max_skipped_steps": 3}, "max_skipped_steps 3 does nothing here"),
        ({"max_steps": 0}, "max_steps is missing"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**settings)
