"""Rows that a recipe's `eval:` and `eval_dataset` select, of manifests and of other tasks."""

import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from builders import tone
from earwise.apps.recipe_eval import eval_rows
from earwise.apps.recipe_run import check_run
from earwise.config.control.run_control import EvalConfig
from earwise.config.recipe import check_recipe
from earwise.data.manifest_path import manifest_path, task_file

OWN_TASK = """
import csv

from earwise.types import Audio, Example, Text, Turn


def load(path, audio_root=None):
    with path.open(newline="") as handle:
        return [
            Example(row["nr"], (Turn("user", (Audio(str(path.parent / row["sound"])), Text("Which?"))),), (row["key"],))
            for row in csv.DictReader(handle)
        ]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table in a form of its own with the task that reads it, and a table as people write questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    soundfile.write(tmp_path / "a.wav", tone(0.3), 16000)
    soundfile.write(tmp_path / "b.wav", tone(0.3, 900.0), 16000)
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    (tmp_path / "own.csv").write_text("nr,sound,key\n1,a.wav,low\n2,a.wav,soft\n")
    (tmp_path / "questions.csv").write_text("audio,question,answer\nb.wav,Which?,high\n")
    return tmp_path


def test_a_table_of_another_task_is_read_by_the_task_itself(folder: Path) -> None:
    """A table is converted only for the task `manifest`."""
    rows = eval_rows(EvalConfig(manifest="own.csv", task="own_task.py:load"), folder)
    assert [(row.id, row.answer) for row in rows] == [("1", ("low",)), ("2", ("soft",))]
    (row,) = eval_rows(EvalConfig(manifest="questions.csv"), folder)
    assert row.answer == ("high",)


@pytest.mark.parametrize("place", ["eval", "eval_dataset"])
def test_a_recipe_with_such_a_task_is_checked(folder: Path, place: str) -> None:
    entry = {"manifest": "own.csv", "task": "own_task.py:load"}
    stage: dict[str, Any] = {"kind": "sft", "max_steps": 1, "data": {"mixture": [{"manifest": "questions.csv"}]}}
    stage |= {"eval_dataset": entry, "eval_steps": 1} if place == "eval_dataset" else {}
    recipe = {"recipe": "t", "trackers": [], "stages": [stage], "eval": [entry] if place == "eval" else []}
    (checked,) = check_run(check_recipe(recipe, "test"), folder).stages
    assert checked.row_counts == {"questions.csv": 1}


def test_files_of_tasks(folder: Path) -> None:
    assert task_file("mmau", "own.csv", folder) == folder / "own.csv"
    assert task_file("mmau", str(folder / "own.csv"), Path("elsewhere")) == folder / "own.csv"
    assert task_file("mmau", "starter:val", folder) == manifest_path("starter:val", folder)
    assert task_file("manifest", "questions.csv", folder).suffix == ".jsonl"
