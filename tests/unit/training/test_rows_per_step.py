"""`rows_per_step`: a step has exactly that many rows, an epoch every row once, rows about one clip share a tree."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from builders import tiny_qwen2_audio
from earwise.apps.recipe_run import TrainOptions, check_run, train_recipe
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.types import Audio, Example, Text, Turn
from resumed import metrics_rows, run_interrupted_and_whole

ROWS = 20


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipe below, which names it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty rows about six clips: clip 0 has ten of them, clip 5 cannot be read and has one."""
    clips = [0] * 10 + [1] * 4 + [2] * 3 + [3, 4, 5]
    for number in range(5):
        wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * number) * np.arange(8000) / 16000)
        soundfile.write(tmp_path / f"{number}.wav", wave, 16000)
    (tmp_path / "5.wav").write_bytes(b"no sound")
    rows = [
        Example(f"r{row}", (Turn("user", (Audio(f"{clip}.wav"), Text(f"question {row}?"))),), ("low",), root=tmp_path)
        for row, clip in enumerate(clips)
    ]
    manifest.write(tmp_path / "rows.jsonl", rows)
    return tmp_path


def recipe(**settings: object) -> Recipe:
    stage = {
        "kind": "sft", "rows_per_step": 4, "num_train_epochs": 2, "pack_tokens": 400, "save_steps": 2,
        "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"open": 1.0}, "on_bad_row": "skip"},
        "trainable": {"connector": "full", "decoder": "frozen"}, "log_completions_steps": 0,
    }  # fmt: skip
    raw = {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 3, "stages": [stage | settings]}
    return check_recipe(raw, "test")


def test_steps_follow_from_rows_and_have_exactly_that_many(folder: Path) -> None:
    resolved = recipe()
    assert check_run(resolved, folder).stages[0].config.max_steps == 2 * ROWS / 4
    train_recipe(resolved, folder, folder / "run", options=TrainOptions(evaluate=False))
    steps = metrics_rows(folder / "run")
    assert [len(row["ids"]) for row in steps] == [4] * 10
    drawn = [identifier for row in steps for identifier in row["ids"]]
    first_epoch = drawn[: ROWS - 1]  # the unreadable row's place is taken by the next draw
    assert len(set(first_epoch)) == ROWS - 1 and "r19" not in drawn
    assert all(row["sft/clips"] <= 4 for row in steps)
    assert min(row["sft/clips"] for row in steps) < 4, "rows about one clip share a tree"


def test_resumed_run_equals_uninterrupted_run(folder: Path) -> None:
    run_interrupted_and_whole(recipe(num_train_epochs=None, max_steps=5), folder, after=2)


@pytest.mark.parametrize("name", ["clips_per_step", "questions_per_clip"])
def test_settings_of_clips_beside_it_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} 3 does nothing here; rows_per_step draws rows"):
        recipe(**{name: 3})
