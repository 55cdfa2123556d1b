"""Published figures that belong beside a run: those of its benchmark and edition, for the score of all items.

Between the packaged figures and `earwise report`. Where several sets share a task and nothing tells which one a run is
of (LibriSpeech and AISHELL are both transcription), there is none: a figure of another set would mislead.
"""

from collections.abc import Mapping
from typing import Any

from earwise.apps.paper_tables.published import BenchmarkSet, benchmark_sets, papers
from earwise.report.published_figures import PublishedFigure


def figures_beside(metrics: Mapping[str, Any]) -> list[PublishedFigure]:
    """The published figures of the set that a run measured.

    Args:
        metrics: What `metrics.json` of the run holds.
    Returns:
        One figure for each published row with a score of all items, in the order of the papers; empty if the set is
        not known.
    """
    key = _set_of(metrics)
    if key is None:
        return []
    items = benchmark_sets()[key].items
    figures = []
    for paper in papers().values():
        for table in paper.tables:
            for place, column in enumerate(table.columns):
                if column.set != key or column.group or column.score not in ("", metrics["headline"]):
                    continue
                extent = f", {items:,} items" if items and items != metrics["n"] else ""
                figures += [
                    PublishedFigure(row.model, value, f"{row.source}{extent}")
                    for row in table.rows
                    if (value := row.values[place]) is not None
                ]
    return list(dict.fromkeys(figures))


def _set_of(metrics: Mapping[str, Any]) -> str | None:
    """Key of the set that a run measured; None if it cannot be told."""
    task = metrics.get("task")
    name = task["name"] if isinstance(task, Mapping) else task
    edition = metrics.get("benchmark") or ""
    matches = [key for key, entry in benchmark_sets().items() if entry.task == name and _fits(entry, edition)]
    return matches[0] if len(matches) == 1 else None


def _fits(entry: BenchmarkSet, edition: str) -> bool:
    """Whether a set can be what a run measured: answers known, asked as usual, of the run's edition."""
    is_usual = not (entry.hidden or entry.style or entry.judge)
    return is_usual and (not entry.version or entry.version in edition)
