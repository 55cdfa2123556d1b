"""Published figures beside a run: those of its set and edition, none where the set cannot be told."""

from pathlib import Path
from typing import Any

import pytest

from earwise import cli
from earwise.apps.paper_tables.beside_run import figures_beside
from earwise.evaluation.results import read_run
from earwise.evaluation.run import evaluate
from earwise.files import write_json
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task


def metrics_of(task: str, benchmark: str | None, n: int = 1000) -> dict[str, Any]:
    return {"task": {"name": task}, "benchmark": benchmark, "headline": "official", "n": n}


def test_the_edition_decides() -> None:
    old = figures_beside(metrics_of("mmau", "MMAU test-mini old"))
    new = figures_beside(metrics_of("mmau", "MMAU test-mini v05.15.25"))
    assert {figure.model: figure.value for figure in old}["GRPO, prompt 2 (released)"] == 64.5
    assert old and new and not set(old) & set(new) and all(figure.source for figure in (*old, *new))
    assert figures_beside(metrics_of("mmau", "MMAU test-mini of another day")) == []


def test_a_part_of_the_items_is_said() -> None:
    (figure, *_) = figures_beside(metrics_of("mmau", "MMAU test-mini old", n=200))
    assert figure.source.endswith(", 1,000 items")


@pytest.mark.parametrize("task", ["manifest", "transcription", "mine.py:TASK"], ids=["own", "several", "file"])
def test_a_set_that_cannot_be_told_has_none(task: str) -> None:
    assert figures_beside(metrics_of(task, None)) == []


def test_the_report_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 4), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", "run"]) == 0
    assert "itrack published" not in (tmp_path / "run" / "report.html").read_text()
    metrics = read_run(tmp_path / "run").metrics | metrics_of("mmau", "MMAU test-mini old", n=4)
    write_json(tmp_path / "run" / "metrics.json", metrics)
    assert cli.run(["report", "run"]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("itrack published") == len(figures_beside(metrics)) and "64.5 %" in text
