"""The tables of a paper as text, Markdown, CSV, LaTeX and JSON."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from earwise.apps.paper_tables.measure import Figure, MeasuredPaper, MeasuredTable

NO_VALUE = "–"
FIXTURE_NOTE = (
    "FIXTURES: our figures come from hand-made rows, not from the benchmarks; they say nothing about a model."
)


def as_markdown(result: MeasuredPaper) -> str:
    """All tables with captions, sources and notes."""
    lines = [f"# {result.paper.title}", ""]
    if result.is_fixture:
        lines += [f"**{FIXTURE_NOTE}**", ""]
    for table in result.tables:
        head, *body = cells(table, result)
        lines += [table.table.caption, "", _row(head), _row(["---"] * len(head)), *map(_row, body), ""]
        lines += [f"- {note}" for note in table.notes] + ([""] if table.notes else [])
    return "\n".join(lines).rstrip() + "\n"


def as_csv(result: MeasuredPaper) -> str:
    """One line a figure: table, model, column, value, n, low, high, source, fixture. A column of ours without a figure
    has a line too, whose source says why."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "model", "column", "value", "n", "low", "high", "source", "fixture"])
    for table in result.tables:
        labels, caption = [column.label for column in table.table.columns], table.table.caption
        for row in table.table.rows:
            for label, value in zip(labels, row.values, strict=True):
                if value is not None:
                    writer.writerow([caption, row.model, label, value, "", "", "", row.source, ""])
        fixture = "yes" if result.is_fixture else "no"
        for label, figure, reason in zip(labels, table.figures, table.reasons, strict=True):
            source = f"here, {reason}" if reason else "here"
            numbers: list[float | str] = [""] * 4
            if figure is not None:
                numbers = [round(figure.value, 4), figure.n, *(_rounded(end) for end in (figure.low, figure.high))]
            writer.writerow([caption, result.model, label, *numbers, source, fixture])
    return buffer.getvalue()


def as_latex(result: MeasuredPaper) -> str:
    """Tables for the package booktabs."""
    lines = [f"% {result.paper.title}"] + ([f"% {FIXTURE_NOTE}"] if result.is_fixture else [])
    for table in result.tables:
        head, *body = cells(table, result)
        lines += [r"\begin{table}", rf"\caption{{{_tex(_caption(table, result))}}}"]
        lines += [rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule", _tex_row(head), r"\midrule"]
        lines += [_tex_row(row) for row in body]
        lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in table.notes), r"\end{table}", ""]
    return "\n".join(lines)


def as_json(result: MeasuredPaper) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "paper": result.paper.title,
        "model": result.model,
        "fixtures": result.is_fixture,
        "tables": [
            {
                "caption": table.table.caption,
                "columns": [column.label for column in table.table.columns],
                "published": [asdict(row) for row in table.table.rows],
                "here": [None if figure is None else asdict(figure) for figure in table.figures],
                "reasons": list(table.reasons),
                "notes": list(table.notes),
            }
            for table in result.tables
        ],
    }


def cells(table: MeasuredTable, result: MeasuredPaper) -> list[list[str]]:
    """Head and rows of a table: the published rows, then ours."""
    head = ["model", "source", *(column.label for column in table.table.columns)]
    body = [[row.model, row.source, *map(_published, row.values)] for row in table.table.rows]
    source = "here, fixtures" if result.is_fixture else "here"
    return [head, *body, [result.model, source, *map(_measured, table.figures, table.reasons)]]


def _caption(table: MeasuredTable, result: MeasuredPaper) -> str:
    return f"{table.table.caption}{' ' + FIXTURE_NOTE if result.is_fixture else ''}"


def _published(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:g}"


def _measured(figure: Figure | None, reason: str) -> str:
    """A figure with its interval and number of items, and why it is missing or not of all items."""
    if figure is None:
        return reason or NO_VALUE
    interval = "" if figure.low is None or figure.high is None else f" [{figure.low:.1f}, {figure.high:.1f}]"
    return f"{figure.value:.1f}{interval} (n {figure.n}{'; ' + reason if reason else ''})"


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def _row(values: Sequence[str]) -> str:
    return f"| {' | '.join(value.replace('|', chr(92) + '|') for value in values)} |"


def _tex_row(values: Sequence[str]) -> str:
    return " & ".join(map(_tex, values)) + r" \\"


def _tex(text: str) -> str:
    """Text with LaTeX's own characters escaped."""
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return escaped.replace("–", "--").replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
