"""Tables of a page as CSV, Markdown and LaTeX: values by hand, no cell becomes a formula or markup."""

import csv
import io
import re
from pathlib import Path

import pytest

from earwise import cli
from earwise.evaluation.run import evaluate
from earwise.report.page import Section, page
from earwise.report.table_files import as_csv, as_latex, as_markdown, page_tables
from earwise.report.tables import table
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task

BODY = table(
    ["Run", "Right", "Difference"],
    [["a_1 &amp; b", "77.5<small>62.5–87.7</small>", "−2.0"], ["=1+1", "50.0", "+4.5"]],
)
PAGE = page("T", "", [], [Section("Result: 1", BODY)], "")


def test_every_table_is_read_with_its_section_and_its_small_print() -> None:
    (result,) = page_tables(PAGE)
    assert result.section == "Result: 1"
    assert [[cell.joined for cell in row] for row in result.rows] == [
        ["Run", "Right", "Difference"], ["a_1 & b", "77.5 (62.5–87.7)", "−2.0"], ["=1+1", "50.0", "+4.5"],
    ]  # fmt: skip


def test_csv_holds_numbers_and_no_formula() -> None:
    assert list(csv.reader(io.StringIO(as_csv(page_tables(PAGE)[0])))) == [
        ["Run", "Right", "Right: detail", "Difference"],
        ["a_1 & b", "77.5", "62.5–87.7", "-2.0"],
        ["'=1+1", "50.0", "", "+4.5"],
    ]


def test_markdown_and_latex() -> None:
    (result,) = page_tables(PAGE)
    assert as_markdown(result) == (
        "| Run | Right | Difference |\n| --- | ---: | ---: |\n"
        "| a\\_1 & b | 77.5 (62.5–87.7) | −2.0 |\n| =1+1 | 50.0 | +4.5 |\n"
    )
    assert as_latex(result) == (
        "\\begin{tabular}{lrr}\n\\toprule\nRun & Right & Difference \\\\\n\\midrule\n"
        "a\\_1 \\& b & 77.5 (62.5--87.7) & $-$2.0 \\\\\n=1+1 & 50.0 & +4.5 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


@pytest.mark.parametrize("text", ["a|b", "<b>", "`x`", "[a](javascript:1)"], ids=["bar", "tag", "code", "link"])
def test_text_of_runs_stays_text_in_markdown(text: str) -> None:
    (result,) = page_tables(table(["A"], [[text.replace("<", "&lt;")]]))
    cell = as_markdown(result).splitlines()[2][2:-2]
    assert cell.replace("\\", "") == text
    assert not re.search(r"(?<!\\)[|<`\[]", cell), "each mark is escaped"


def test_the_command_writes_three_files_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 8), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", "run", "--tables", "tables", "--audio-mb", "0"]) == 0
    names = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert {"01-result.csv", "01-result.md", "01-result.tex"} <= set(names) and len(names) % 3 == 0
    rows = list(csv.reader((tmp_path / "tables" / "01-result.csv").open(encoding="utf-8")))
    assert dict(zip(*rows, strict=True))["Official"] == "100.0"
    assert "data:audio" not in (tmp_path / "run" / "report.html").read_text()
