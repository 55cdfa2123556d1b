"""Published figures beside the runs: read with their sources or refused, drawn without an interval."""

import json
from pathlib import Path

import pytest

from earwise import cli
from earwise.errors import DataError
from earwise.evaluation.run import evaluate
from earwise.report.plots import Interval, intervals
from earwise.report.published_figures import PublishedFigure, read_published
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task

FIGURE = {"model": "Model <A>", "value": 64.5, "source": "arXiv:0000.00000, table 2"}


def test_json_and_csv_hold_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([FIGURE]))
    (tmp_path / "a.csv").write_text('\ufeffmodel,value,source\nModel <A>,64.5,"arXiv:0000.00000, table 2"\n')
    expected = [PublishedFigure("Model <A>", 64.5, "arXiv:0000.00000, table 2")]
    assert read_published(tmp_path / "a.json") == read_published(tmp_path / "a.csv") == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{**FIGURE, "source": " "}], "entry 1: lacks one of"),
        ([FIGURE, {**FIGURE, "value": "high"}], "entry 2: value 'high'"),
        ([{**FIGURE, "value": -3}], "no percentage"),
        ({"figures": []}, "holds no list"),
        (["x"], "lacks one of"),
    ],
    ids=["no-source", "text", "negative", "object", "string"],
)
def test_what_is_no_figure_is_refused_with_its_place(tmp_path: Path, entries: object, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=message):
        read_published(tmp_path / "a.json")


def test_the_page_shows_them_with_their_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 4), tmp_path / "run")
    (tmp_path / "figures.json").write_text(json.dumps([FIGURE]))
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", "run", "--published", "figures.json"]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert 'class="itrack published" style="--low:64.50%' in text and "Model &lt;A&gt;" in text
    assert "arXiv:0000.00000, table 2" in text and "64.5 %" in text
    assert cli.run(["report", "run", "--published", "none.json", "--out", "other.html"]) == 2
    assert not (tmp_path / "other.html").exists()


def test_published_figures_of_some_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 4), tmp_path / "run")
    others = [FIGURE, {**FIGURE, "model": "Other-7B, zero-shot"}, {**FIGURE, "model": "Third"}]
    (tmp_path / "figures.json").write_text(json.dumps(others))
    monkeypatch.chdir(tmp_path)
    arguments = ["report", "run", "--published", "figures.json", "--published-model"]
    assert cli.run([*arguments, "other-7b", "--published-model", "third"]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "Other-7B, zero-shot" in text and "Third" in text and "Model &lt;A&gt;" not in text
    capsys.readouterr()
    assert cli.run([*arguments, "qwen"]) == 2
    assert "--published-model 'qwen' is in none of the models: Model <A>, Other-7B" in capsys.readouterr().err


def test_figures_above_100_percent_widen_the_scale() -> None:
    """An error rate of 133 % and its interval up to 167 % stand on a scale to 200 %."""
    rows = [Interval("a", 0.5, 0.25, 0.75, 0), Interval("b", 1.333, 1.0, 1.669, -1)]
    text = intervals(rows, 0.25)
    assert "--low:12.50%;--high:37.50%;--value:25.00%" in text and "--high:83.45%;--value:66.65%" in text
    assert ">200 %<" in text and "left:12.50%" in text
    assert ">100 %<" in intervals(rows[:1], None) and "--value:50.00%" in intervals(rows[:1], None)
