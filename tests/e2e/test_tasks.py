"""Every task of the table through the command line: the embedded model, bundled clips, relative paths, defaults."""

import json
from itertools import cycle
from pathlib import Path

import pytest
import soundfile

import benchmark_files
from e2e.shell import Cli
from earwise.audio import decode
from earwise.evaluation.task_table import TASKS

JUDGED = ("airbench-chat", "mmar-rubrics")
"""Tasks all of whose scores come from a judge."""


def test_every_task_with_the_embedded_model(
    cli: Cli, model: str, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two items of each of the 22 tasks, in the published formats, in one command."""
    numbered = cycle(clips)

    def write_clip(path: Path, frequency: float = 440.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, decode(next(numbered), benchmark_files.RATE), benchmark_files.RATE)

    monkeypatch.setattr(benchmark_files, "write_tone", write_clip)
    monkeypatch.chdir(tmp_path)
    choices = []
    for name, write in benchmark_files.FILES.items():
        folder = Path("sets") / name
        folder.mkdir(parents=True)
        choices += ["--task", f"{name}={write(folder)}"]
    result = cli("evaluate", *choices, "--model", model, "--limit", 2, "--no-controls", "--out", "runs/all", "--json")
    assert result.code == 0, result.err
    rows = {row["task"]: row for row in result.json["tasks"]}
    assert rows.keys() == TASKS.keys() == benchmark_files.FILES.keys()
    for name, row in rows.items():
        folder = Path("runs/all") / row["folder"]
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
        assert {sample["status"] for sample in samples} <= {"ok", "unparsed", "ambiguous"}, name
        assert len({sample["id"] for sample in samples}) == len(samples) == min(2, len(samples)), name
        assert all((folder / clip).is_file() for sample in samples for clip in sample["audio"]), name
        if name in JUDGED:
            assert (row["value"], row["unscored"]) == (None, "needs --judge")
        else:
            assert row["n"] >= 1 and row["value"] >= 0 and row["low"] <= row["value"] <= row["high"], name
            assert row["unscored"] == "" and (folder / "metrics.json").is_file()
    text = cli("evaluate", *choices, "--model", model, "--limit", 2, "--no-controls", "--out", "runs/all")
    assert text.code == 0 and text.out.count("needs --judge") == 2 and "no gold answers" not in text.out
