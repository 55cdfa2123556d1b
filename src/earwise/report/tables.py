"""HTML tables and the cells that several of them share: intervals, paired differences, p values, names of runs.

Part of `earwise.report`. Cells are HTML already: callers escape the text of runs, except where a function here says
that it escapes.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from earwise.evaluation.results import EvalRun
from earwise.report.plots import points

NO_VALUE = "–"
SCORE_LABELS = {
    "wer": "WER", "wer_whisper": "WER (Whisper)", "bleu": "BLEU", "chrf": "chrF", "cider_d": "CIDEr-D",
    "rouge_l": "ROUGE-L", "meteor": "METEOR", "spice": "SPICE", "spider": "SPIDEr", "macro_f1": "Macro F1",
    **{f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)},
}  # fmt: skip
"""Scores whose usual writing does not follow from their names."""
ColouredRun = tuple[EvalRun, int]
"""A run and the number of its colour in the page's style sheet."""


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "") -> str:
    """An HTML table; the first column names the row.

    Args:
        head: Titles of the columns (HTML).
        body: Rows of cells (HTML).
        caption: A note below the table (HTML); empty: none.
    """
    head_cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    rows = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in body
    )
    note = f'<p class="note">{caption}</p>' if caption else ""
    content = f"<table><thead><tr>{head_cells}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{content}</div>{note}'


def score_label(name: str) -> str:
    """A score's name as a reader knows it.

    >>> score_label("cider_d"), score_label("recall_yes")
    ('CIDEr-D', 'Recall yes')
    """
    return SCORE_LABELS.get(name, name.replace("_", " ").capitalize())


def interval_cell(metric: Mapping[str, Any] | None) -> str:
    """A metric in percent with its interval, if it has one; a dash for None. A graded score of a single item has none,
    because one value has no spread to resample."""
    if metric is None:
        return NO_VALUE
    value = f"{100 * metric['accuracy']:.1f}"
    if "low" not in metric or (metric.get("n") == 1 and metric["low"] == metric["high"]):
        return value
    return f"{value}<small>{100 * metric['low']:.1f}–{100 * metric['high']:.1f}</small>"


def gain_cell(difference: Mapping[str, Any]) -> str:
    """A paired difference in points with its interval, coloured if the interval does not include 0."""
    css_class = "up" if difference["low"] > 0 else "down" if difference["high"] < 0 else "level"
    interval = f"{points(difference['low'])} to {points(difference['high'])}"
    return f'<b class="{css_class}">{points(difference["difference"])}</b><small>{interval}</small>'


def p_value(p: float) -> str:
    """A p value that is never shown as 0 and never breaks over a line.

    >>> p_value(0.0321).split()
    ['p', '=', '0.032']
    """
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def run_name(run: EvalRun, colour: int) -> str:
    """The run's name with a mark in its colour; the name is escaped."""
    return f'<span class="key" style="--c:var(--c{colour})"></span>{escape(run.name)}'
