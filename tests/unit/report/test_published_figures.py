"""Published figures beside the runs: read with their sources or refused, drawn without an interval."""

import json
from pathlib import Path

import pytest

from earwise import cli
from earwise.errors import DataError
from earwise.evaluation.run import evaluate
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
