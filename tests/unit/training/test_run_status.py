"""`earwise status`: before, beside and after a run, and after a kill; nothing in the folder is changed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from earwise import cli
from earwise.files import lock_folder
from earwise.training.logging.run_status import describe_status, run_status, write_process


def write_run(folder: Path, *, steps: int, stage: str = "1-grpo") -> Path:
    """A run folder with the rows of two stages, two seconds a step, and a last line that is being written."""
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    write_process(folder, stage, 1, 2, 10)
    rows = [{"stage": "0-sft", "step": step, "seconds": 9.0, "sft/loss": 3.0} for step in range(1, 30)]
    rows += [
        {"stage": stage, "step": step, "seconds": 2.0, "grpo/loss": 0.5 / step, "lr": 1e-6, "tokens_per_s": 800.0}
        for step in range(1, steps + 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "1-gr'
    (folder / "metrics.jsonl").write_text(text)
    evaluations = [
        {"stage": stage, "step": 2, "accuracy": 0.75, "seconds": 9.0, "best": True},
        {"stage": stage, "step": 4, "accuracy": 0.5, "seconds": 3.0, "best": False},
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    return folder


def test_a_stopped_run_says_where_it_is_and_how_to_go_on(tmp_path: Path) -> None:
    status = run_status(write_run(tmp_path / "run", steps=6))
    assert (status.state, status.stage, status.stage_number, status.num_stages) == ("stopped", "1-grpo", 2, 2)
    assert (status.step, status.max_steps, status.seconds_per_step, status.seconds_left) == (6, 10, 2.0, None)
    assert status.metrics is not None and status.metrics["grpo/loss"] == pytest.approx(0.5 / 6)
    lines = "\n".join(describe_status(status))
    assert (
        "step 6 of 10" in lines and "2.00 s a step" in lines and f"earwise train --resume {tmp_path / 'run'}" in lines
    )
    assert "evaluation  after step 4: accuracy 0.5\n" in lines and "best        after step 2: accuracy 0.75\n" in lines
    assert "ended       without a word: killed" in lines


def test_a_living_run_has_time_left_and_a_killed_one_has_not(tmp_path: Path) -> None:
    """Another process holds the folder as a run does, and is killed."""
    folder = write_run(tmp_path / "run", steps=6)
    program = (
        "import sys, time; from pathlib import Path; from earwise.files import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == "held"
        status = run_status(folder)
        assert status.state == "running" and status.seconds_left == 4 * (2.0 + 3.0 / 2), (
            "with evaluations, 3 s for 2 steps"
        )
        assert "14.0 s left in this stage" in "\n".join(describe_status(status))
    finally:
        holder.kill()
        holder.wait()
    assert run_status(folder).state == "stopped"


def test_a_finished_run_and_one_that_has_just_begun(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=10)
    (folder / "final").mkdir()
    assert run_status(folder).state == "finished" and "continue" not in "\n".join(describe_status(run_status(folder)))
    young = tmp_path / "young"
    young.mkdir()
    with lock_folder(young):
        status = run_status(young)
        assert (status.state, status.stage, status.metrics) == ("running", "", None)
        assert len(describe_status(status)) == 1


def test_the_command_prints_json_changes_nothing_and_refuses_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", steps=3)
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    time.sleep(0.01)
    assert cli.run(["status", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3
    assert cli.run(["status", "run"]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name in before}
    assert after == before and capsys.readouterr().out.startswith("run: stopped")
    (tmp_path / "empty").mkdir()
    assert cli.run(["status", "empty"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds no training run" in line and not list(Path("empty").iterdir())
