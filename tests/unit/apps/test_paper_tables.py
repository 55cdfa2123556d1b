"""The papers' tables: published figures are those of the sources, ours stand beside them, and nothing is left out."""

import csv
import json
from pathlib import Path

import pytest

from chat_server import choose_by_loudness, run_chat_server
from earwise import cli
from earwise.apps.paper_tables.fixtures import write_fixtures
from earwise.apps.paper_tables.measure import estimate_judges, measure_paper
from earwise.apps.paper_tables.published import benchmark_sets, find_paper, papers
from earwise.apps.paper_tables.render import as_csv, as_json, as_latex, as_markdown
from earwise.apps.task_runs import TaskRunOptions
from earwise.engine.base import Prompt
from earwise.errors import ConfigError, DataError
from earwise.evaluation.judge.models import EngineJudge
from earwise.evaluation.task_table import TASKS, load_task
from earwise.types import Text
from scripted_engine import ScriptedEngine, prompt_options

PAPERS = ("r1-aqa", "sari", "qwen2-audio", "mellow", "xs-cot")


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fixtures(tmp_path_factory.mktemp("fixtures") / "sets", rows=3)


def first_option(prompt: Prompt) -> str:
    text = "".join(part.text for part in prompt.turns[-1].parts if isinstance(part, Text))
    return "A" if "A." in text else "yes" if "yes or no" in text else text[:40]


def test_the_five_papers_are_there_and_their_sets_are_known() -> None:
    assert tuple(papers()) == PAPERS
    assert {key for paper in papers().values() for key in paper.sets} <= set(benchmark_sets())
    with pytest.raises(ConfigError, match="paper 'r1aqa' is none of r1-aqa, sari"):
        find_paper("r1aqa")


@pytest.mark.parametrize("name", PAPERS)
def test_every_figure_names_its_source_and_has_a_column(name: str) -> None:
    for table in find_paper(name).tables:
        for row in table.rows:
            assert len(row.values) == len(table.columns) and row.source and row.model
        assert table.rows or any("not available" in note or "no absolute figure" in note for note in table.notes)


def test_published_figures_by_hand() -> None:
    """A few of each table, typed again from the sources, and averages that the sources print."""
    (old, test, later, _) = find_paper("r1-aqa").tables
    by_model = {row.model: row.values for row in old.rows}
    assert by_model["GRPO, prompt 2 (released)"] == (69.37, 66.77, 57.36, 64.50)
    assert by_model["Qwen2-Audio-7B-Instruct, direct inference"] == (54.95, 50.98, 42.04, 49.20)
    # 333, 334 and 333 items: the printed averages follow from the three columns (one slip of .2 is the source's own).
    for values in by_model.values():
        sound, music, speech, average = values
        assert None not in values and average == pytest.approx((sound + music + speech) / 3, abs=0.21)
    assert test.rows[0].values == (69.76, 61.40, 62.70, 64.36) and later.rows[0].values == (68.9, 50.8, 61.6)
    libri, voices, *_ = find_paper("qwen2-audio").tables
    assert libri.rows[0].values == (1.3, 3.4, 1.6, 3.6) and voices.rows[-1].values == (9.3, 12.8, 10.9, 10.8, 7.7)
    assert find_paper("sari").tables[0].rows[0].values == (72.75, 67.22, 61.26, 67.08)
    assert find_paper("mellow").tables[0].rows[0].values == (None, None, 29.0, 52.11)


@pytest.mark.parametrize("key", benchmark_sets())
def test_the_fixture_of_every_set_is_read_by_its_task(key: str, fixtures: Path) -> None:
    entry = benchmark_sets()[key]
    if entry.task not in TASKS:
        pytest.skip(f"no task {entry.task}")
    examples = load_task(entry.task).load(fixtures / entry.file, None)
    assert examples and all(path.exists() for example in examples for path in example.audio_paths)


@pytest.mark.parametrize("name", PAPERS)
def test_a_whole_table_is_printed_on_the_fixtures(name: str, fixtures: Path, tmp_path: Path) -> None:
    paper = find_paper(name)
    result = measure_paper(paper, fixtures, ScriptedEngine(first_option, name="scripted-model"), tmp_path)
    assert result.is_fixture
    text = as_markdown(result)
    assert "**FIXTURES: our figures" in text and text.count("| scripted-model | here, fixtures |") == len(paper.tables)
    for table in result.tables:
        for column, figure in zip(table.table.columns, table.figures, strict=True):
            entry = benchmark_sets()[column.set]
            assert figure is not None or any(note.startswith(entry.name) for note in table.notes), column
    judged = {key for key, entry in benchmark_sets().items() if entry.judge}
    for table in result.tables:
        if any(column.set in judged for column in table.table.columns):
            assert any("needs a judge" in note for note in table.notes), "no other score stands in for a judge's"
    measured = [figure for table in result.tables for figure in table.figures if figure is not None]
    assert measured or name == "xs-cot"
    if name == "xs-cot":
        assert result.tables[0].figures == (None, None, None), "chrF is no GPT score"
    if name == "qwen2-audio":
        assert [column.scale for column in result.tables[-1].table.columns] == [10] * 5
    assert as_json(result)["fixtures"] is True


def test_forms_of_a_table(fixtures: Path, tmp_path: Path) -> None:
    result = measure_paper(find_paper("r1-aqa"), fixtures, ScriptedEngine(first_option, name="a_model"), tmp_path)
    rows = list(csv.DictReader(as_csv(result).splitlines()))
    assert {row["fixture"] for row in rows if row["source"] == "here"} == {"yes"}
    released = [row["value"] for row in rows if row["model"] == "GRPO, prompt 2 (released)"]
    assert released == ["69.37", "66.77", "57.36", "64.5"]
    latex = as_latex(result)
    assert r"a\_model" in latex and r"\toprule" in latex and r"Accuracy, \%, on MMAU" in latex and "% FIXTURES" in latex
    notes = [note for table in result.tables for note in table.notes]
    assert any("another edition, unknown" in note for note in notes)
    assert any("9 of 1000 items" in note for note in notes)
    assert any("answers are hidden; submit" in note for note in notes)


def test_missing_sets_are_named(fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mmar").symlink_to(fixtures / "mmar")
    result = measure_paper(find_paper("r1-aqa"), tmp_path / "data", ScriptedEngine(first_option), tmp_path / "out")
    text = as_markdown(result)
    assert "MMAU test-mini, edition before 15 May 2025: not measured, put the published file at mmau/" in text
    assert "MMSU: not measured" in text and not result.is_fixture and "FIXTURES" not in text
    assert "MMAR: 9 of 1000 items" in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds none of the 6 sets of this paper; put them there, as mmau/"):
        measure_paper(find_paper("r1-aqa"), tmp_path / "empty", ScriptedEngine(first_option), tmp_path / "out")


def test_a_judge_fills_its_columns(fixtures: Path, tmp_path: Path) -> None:
    """AIR-Bench chat, XS-CoT's score and MMAR-Rubrics, by a judge whose points are known."""

    def judge(prompt: Prompt) -> str:
        text = str(prompt.turns)
        if "Two assistants" in text:
            return "6 6"
        if "Rubric, a JSON list" in text:
            return '[{"score": 1}, {"score": 0.5}]'
        return '{"score": 4}'

    judges = [EngineJudge(ScriptedEngine(judge, name="scripted-judge"))]
    model = ScriptedEngine(first_option, name="scripted-model")
    costs: list[str] = []
    chat = measure_paper(
        find_paper("qwen2-audio"), fixtures, model, tmp_path / "q", judges=judges, notify=costs.append
    ).tables[-1]
    values = {column.label: figure and figure.value for column, figure in zip(
        chat.table.columns, chat.figures, strict=True
    )}  # fmt: skip
    assert values == dict.fromkeys(("speech", "sound", "music", "mixed", "average"), pytest.approx(6.0))
    assert chat.reasons == ("",) * 5 and not any("needs a judge" in note for note in chat.notes)
    assert any("judge scripted-judge@1: " in line and "requests" in line for line in costs), costs
    talker = ScriptedEngine(lambda prompt: "Blau.")
    alpaca = measure_paper(find_paper("xs-cot"), fixtures, talker, tmp_path / "x", judges=judges)
    assert [figure and figure.value for figure in alpaca.tables[0].figures] == [pytest.approx(80.0)] * 3
    thinker = ScriptedEngine(
        lambda prompt: f"<think>Clear.</think><answer>{(prompt_options(prompt) or ['A'])[0]}</answer>"
    )
    rubrics = measure_paper(find_paper("r1-aqa"), fixtures, thinker, tmp_path / "r", judges=judges).tables[-1]
    share, accuracy = rubrics.figures
    assert share and accuracy and share.value == pytest.approx(0.75 * accuracy.value) and accuracy.value > 0
    estimate = estimate_judges(find_paper("xs-cot"), fixtures, tmp_path / "new", TaskRunOptions(), judges)
    assert [(key, cost.requests) for key, cost in estimate] == [
        ("alpaca-ja", 1), ("alpaca-de", 1), ("alpaca-fr", 1)
    ], "rows with the same texts are judged once"  # fmt: skip


def test_columns_without_a_judge_say_so(fixtures: Path, tmp_path: Path) -> None:
    result = measure_paper(find_paper("xs-cot"), fixtures, ScriptedEngine(first_option), tmp_path)
    assert result.tables[0].reasons == ("needs --judge",) * 3
    row = next(line for line in as_markdown(result).splitlines() if line.startswith("| scripted |"))
    assert row == "| scripted | here, fixtures | needs --judge | needs --judge | needs --judge |"
    assert result.tables[1].reasons[0] != "needs --judge", "the delay needs none"
    rows = list(csv.DictReader(as_csv(result).splitlines()))
    assert [(line["value"], line["source"]) for line in rows][:3] == [("", "here, needs --judge")] * 3
    mellow = measure_paper(find_paper("mellow"), fixtures, ScriptedEngine(first_option), tmp_path / "m")
    assert "; needs --judge)" in as_markdown(mellow), "the figure of MMAU-Pro without its open items"


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_measured(fixtures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "mmar").mkdir(parents=True)
    rows = json.loads((fixtures / "mmar" / "MMAR-meta.json").read_text())
    for row in rows:
        del row["rubric"]
    (data / "mmar" / "MMAR-meta.json").write_text(json.dumps(rows))
    (data / "mmar" / "audio").symlink_to(fixtures / "mmar" / "audio")
    tables = measure_paper(find_paper("r1-aqa"), data, ScriptedEngine(first_option), tmp_path / "out").tables
    assert tables[-1].reasons == ("unreadable file",) * 2 and "rubric" in tables[-1].notes[-1]
    assert tables[2].reasons == ("no file", "", "no file") and tables[2].figures[1] is not None


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["table", "r1-aqa", "--list"]) == 0
    assert "mmar/MMAR-meta.json" in capsys.readouterr().out
    for arguments, message in (
        (["table", "r1-aqa"], "give --data DIR"),
        (["table", "nothing", "--list"], "paper 'nothing' is none of"),
        (["table", "sari", "--data", "nowhere"], "no such folder"),
    ):
        assert cli.run(arguments) == 2 and message in capsys.readouterr().err
    with run_chat_server(choose_by_loudness) as server:
        command = ["table", "sari", "--fixtures", "--model", f"{server.url}/m", "--limit", "2", "--out", "tables"]
        assert cli.run([*command, "--channel", "first"]) == 0
    printed = capsys.readouterr().out
    assert "Qwen2.5-Omni + SARI" in printed and "here, fixtures" in printed
    assert {path.name for path in (tmp_path / "tables").glob("table.*")} == {
        "table.md", "table.csv", "table.tex", "table.json"
    }  # fmt: skip
    assert json.loads((tmp_path / "tables" / "table.json").read_text())["paper"].startswith("SARI")
    settings = [json.loads(path.read_text()) for path in (tmp_path / "tables").glob("*/settings.json")]
    assert settings and {run["channel"] for run in settings} == {"first"}
