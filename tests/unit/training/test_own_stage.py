"""Stages of a user's own file in whole runs: they train like the package's, resume, and their faults are theirs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from builders import tiny_qwen2_audio, tone
from earwise import cli
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import ConfigError
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.memory.stage_memory import RolloutSize
from earwise.training import run
from earwise.training.check_recipe import check_training
from earwise.training.checkpoints import checkpoint_step, list_checkpoints
from earwise.training.stages.table import stage_class
from earwise.types import Audio, Example, Text, Turn
from resumed import assert_same_result, metrics_rows, run_interrupted_and_whole

OWN = '''
from earwise.config.stages import GrpoConfig, SftConfig, StageConfig
from earwise.training.stages.grpo import GrpoStage
from earwise.training.stages.sft import SftStage


class SftSettings(SftConfig):
    kind: str
    fails_in: str = ""


class GrpoSettings(GrpoConfig):
    kind: str


class sft(SftStage):
    """The stage of the package, with a fault on request."""

    settings = SftSettings

    def __init__(self, context, config):
        super().__init__(context, config)
        self._fails_in, self._step = config.fails_in, 0

    def batches(self, step):
        self._step = step
        if self._fails_in == "package" and step == 2:
            return self._pipeline.make_step(step, None)
        return super().batches(step)

    def loss(self, logprobs, micro_batch):
        if self._fails_in == "loss" and self._step == 2:
            logprobs @ logprobs.new_zeros(999, 3)  # FAULT
        return super().loss(logprobs, micro_batch)


class grpo(GrpoStage):
    settings = GrpoSettings


class Bare:
    settings = StageConfig
    kind = "bare"

    def batches(self, step): ...


class WithoutAttribute(SftStage):
    settings = SftSettings

    def __init__(self, context, config):
        super().__init__(context, config)

    @property
    def updates_per_rollout(self):
        raise AttributeError


class FreeSettings(StageConfig):
    """Settings that say nothing of what a step draws."""


class Free(SftStage):
    settings = FreeSettings
'''
COMMON = {
    "max_steps": 3,
    "save_steps": 1,
    "data": {"mixture": [{"manifest": "rows.jsonl"}]},
    "optimizer": {"learning_rate": 3e-3},
    "trainable": {"decoder": "full"},
}
SFT = {"kind": "own.py:sft", "clips_per_step": 1}
GRPO = {"kind": "own.py:grpo", "prompts_per_step": 2, "group_size": 3, "max_new_tokens": 4,
        "rewards": {f"{__name__}:length_of": 1.0}}  # fmt: skip


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below."""
    return tiny_qwen2_audio(3)


def length_of(example: Example, completion: str) -> float:
    """A reward that differs between completions."""
    return float(len(completion))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `own.py` and four rows about a clip each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(OWN)
    rows = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", tone(0.3, 300.0 * (number + 1)), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        rows.append(Example(str(number), turns, ("low",), ("low", "high"), root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", rows)
    return tmp_path


def recipe(stage: dict[str, Any], **settings: Any) -> Recipe:
    """A recipe of one stage."""
    top = {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5, "trackers": []}
    return check_recipe(top | {"stages": [COMMON | stage | settings]}, "test")


@pytest.mark.parametrize("stage", [SFT, GRPO], ids=["sft", "grpo"])
def test_a_stage_of_one_s_own_is_that_of_the_package_bit_for_bit(stage: dict[str, Any], folder: Path) -> None:
    """The file's classes add nothing, and have the names of those of the package, from which draws follow."""
    kind = stage["kind"].partition(":")[2]
    own, built_in = folder / "own", folder / "built-in"
    run.start(recipe(stage), own, folder)
    run.start(recipe(stage, kind=kind), built_in, folder)
    assert_same_result(own, built_in)
    assert (own / f"stage-0-{kind}").is_dir(), "no slash, no colon, and no .py in the name of the folder"


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    run_interrupted_and_whole(recipe(SFT), folder, after=2)


def test_a_run_is_resumed_from_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe names `own.py` from the folder where the run was begun; a program that starts anew has not read it."""
    top = {"recipe": "t", "model": {"name": "embedded-blank"}, "seed": 5, "trackers": []}
    content = top | {"stages": [COMMON | SFT | {"max_steps": 1, "name": "first"}]}
    record = {"recipe": content, "base": str(folder), "working_folder": str(folder)}
    (folder / "out").mkdir()
    (folder / "out" / "recipe.json").write_text(json.dumps(record))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    program = "from pathlib import Path; from earwise.config.recipe import recorded_recipe; "
    program += "from earwise.training.stages.table import stage_class; "
    program += "print(stage_class(recorded_recipe(Path('../out'))[0].stages[0]).__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.stdout == "sft\n", done.stderr
    monkeypatch.chdir(folder)
    run.start(recipe(SFT, max_steps=1), folder / "begun", folder)
    assert json.loads((folder / "begun" / "recipe.json").read_text())["working_folder"] == str(folder)


def test_its_memory_and_its_length(folder: Path) -> None:
    (config,) = recipe(GRPO).stages
    assert stage_class(config).memory(config).rollout == RolloutSize(2, 3, 4)
    (checked,) = check_training(recipe(SFT, max_steps=0, num_train_epochs=2, clips_per_step=2), folder).stages
    assert checked.config.max_steps == 4, "four clips twice, two at a time"
    with pytest.raises(ConfigError, match=r"stage Free: how much it draws in a step is not known.*set max_steps"):
        check_training(recipe({"kind": "own.py:Free"}, max_steps=0, num_train_epochs=2), folder)


def test_what_a_class_lacks_is_told_before_the_model_is_loaded(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_training(recipe({"kind": "own.py:Bare"}), folder)
    assert str(caught.value) == (
        "stage 'own.py:Bare' lacks held_out_batches(), loss(), resets_optimizer(), state_dict(), load_state_dict(), "
        "trains_on_preferences(), can_score(), held_out_source(), check(), memory(); docs/extend/stage.md shows what a "
        "stage has"
    )
    with pytest.raises(ConfigError, match=r"stage 'own\.py:WithoutAttribute' lacks updates_per_rollout;"):
        run.start(recipe({"kind": "own.py:WithoutAttribute"}), folder / "out", folder)


@pytest.mark.parametrize(
    ("fails_in", "code", "message"),
    [
        ("loss", 2, "raised in your own code (`earwise --traceback ...` shows how)"),
        ("package", 1, "internal error, our fault: TypeError: 'NoneType' object is not callable (called from"),
    ],
)
def test_a_fault_of_the_file_is_told_with_its_line_and_finished_steps_are_kept(
    fails_in: str, code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that torch raises, called from the file; one that is raised in the package is the package's."""
    model = {"name": f"{__name__}:load"}
    stage = COMMON | SFT | {"fails_in": fails_in}
    content = {"recipe": "t", "model": model, "seed": 5, "trackers": [], "stages": [stage]}
    (folder / "r.yaml").write_text(yaml.safe_dump(content))
    capsys.readouterr()
    assert cli.run(["train", "r.yaml", "--out", "out"]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line and line.startswith("error: ")
    wrong = "# FAULT" if fails_in == "loss" else "make_step(step, None)"
    (number,) = [number for number, text in enumerate(OWN.splitlines(), start=1) if wrong in text]
    assert f"own.py:{number}" in line
    assert [row["step"] for row in metrics_rows(folder / "out")] == [1, 2]
    assert [checkpoint_step(path) for path in list_checkpoints(folder / "out" / "stage-0-sft")] == [2]
