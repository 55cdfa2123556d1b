"""A paper's tables with a model's figures beside the published ones.

Every set of the paper is looked for below a data folder, measured as its task asks, and its figures are taken from the
metrics of that run. A set that is missing, hidden or unreadable is named in the result with what to do; nothing is left
out in silence. A folder with a file `FIXTURES.txt` holds hand-made rows, and the tables say so.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earwise.apps.paper_tables.published import BenchmarkSet, Column, Paper, PaperTable, benchmark_sets
from earwise.apps.task_runs import TaskChoice, TaskRunOptions, load_items, run_task
from earwise.engine.base import Engine
from earwise.errors import DataError
from earwise.evaluation.results import read_run
from earwise.evaluation.scores import mean_delay
from earwise.evaluation.task_table import TASKS, load_task

FIXTURES = "FIXTURES.txt"
Notify = Callable[[str], None]
"""Receives one line of progress."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure, in the unit of the table."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class MeasuredTable:
    """A paper's table with a row of our own."""

    table: PaperTable
    figures: tuple[Figure | None, ...]
    """One figure a column; None where it could not be measured."""
    notes: tuple[str, ...]
    """Why, and what else distinguishes our figures from the published ones."""


@dataclass(frozen=True, slots=True)
class MeasuredPaper:
    """All tables of a paper."""

    paper: Paper
    model: str
    tables: tuple[MeasuredTable, ...]
    is_fixture: bool
    """Whether the data are hand-made rows instead of the benchmarks."""


@dataclass(frozen=True, slots=True)
class _SetResult:
    """The run on one set, or why there is none."""

    metrics: Mapping[str, Any] | None
    delay: float | None = None
    notes: tuple[str, ...] = ()


def measure_paper(
    paper: Paper,
    data: Path,
    engine: Engine,
    out: Path,
    options: TaskRunOptions | None = None,
    *,
    notify: Notify = lambda _: None,
) -> MeasuredPaper:
    """Measure a model on every set of a paper that is there.

    Args:
        paper: The paper.
        data: Folder with the sets, each at its place (`BenchmarkSet.file`).
        engine: The model.
        out: Folder of the runs, one folder a set; finished rows are kept, so that the same call continues.
        options: How sets are run; None: options in the order of the file, as the papers' programs print them, and
            no blind control. A set's own style counts more.
        notify: Receives progress lines.
    Raises:
        DataError: if none of the sets is there.
    """
    sets = benchmark_sets()
    options = options or TaskRunOptions(blind=())
    if not any((data / sets[key].file).exists() for key in paper.sets):
        wanted = ", ".join(sets[key].file for key in paper.sets[:4])
        raise DataError(
            f"{data}: holds none of the {len(paper.sets)} sets of this paper; put them there, as {wanted}, ..."
        )
    results = {}
    for key in paper.sets:
        notify(f"{key}: {sets[key].name}")
        results[key] = _measure_set(sets[key], data, engine, out / key, options)
    tables = tuple(_filled(table, results, sets) for table in paper.tables)
    return MeasuredPaper(paper, engine.name, tables, (data / FIXTURES).exists())


def _measure_set(entry: BenchmarkSet, data: Path, engine: Engine, out: Path, options: TaskRunOptions) -> _SetResult:
    """Run one set."""
    path = data / entry.file
    if entry.task not in TASKS:
        return _SetResult(None, notes=(f"{entry.name}: not measured, this version has no task {entry.task!r}",))
    if not path.exists():
        return _SetResult(None, notes=(f"{entry.name}: not measured, put the published file at {entry.file}",))
    choice = TaskChoice(load_task(entry.task), path, out)
    if entry.style:
        options = replace(options, options=replace(options.options, style=entry.style))
    examples = load_items(choice, options)
    result = run_task(engine, choice, examples, options)
    if result is None:
        return _SetResult(None, notes=(f"{entry.name}: other processes are still at work on it",))
    notes = []
    if entry.judge and "judges" not in result.metrics:
        notes.append(
            f"{entry.name}: its measure needs a judge, so it is missing here or holds only the items that need none; "
            f"see earwise evaluate --task {entry.task} --judge MODEL"
        )
    elif entry.hidden or result.metrics["accuracy"] is None:
        notes.append(f"{entry.name}: its answers are hidden; submit {out.name}/predictions.json for a score")
    if entry.items is not None and len(examples) != entry.items:
        notes.append(f"{entry.name}: {len(examples)} of {entry.items} items")
    edition = next((str(example.meta["version"]) for example in examples if "version" in example.meta), "")
    if entry.version and not edition.startswith(entry.version):
        notes.append(f"{entry.name}: the file is another edition, {edition}; never compare across editions")
    if errors := result.metrics["error"]["count"]:
        notes.append(f"{entry.name}: {errors} items had no completion and count as wrong")
    return _SetResult(result.metrics, mean_delay(read_run(out)), tuple(notes))


def _filled(table: PaperTable, results: Mapping[str, _SetResult], sets: Mapping[str, BenchmarkSet]) -> MeasuredTable:
    """A table with our figures."""
    figures, notes = [], list(table.notes)
    for column in table.columns:
        result = results[column.set]
        figure = _figure(column, result)
        if figure is None and result.metrics is not None and result.metrics["accuracy"] is not None:
            notes.append(_unmeasured(column, sets[column.set]))
        notes += result.notes
        figures.append(figure)
    return MeasuredTable(table, tuple(figures), tuple(dict.fromkeys(notes)))


def _unmeasured(column: Column, entry: BenchmarkSet) -> str:
    """Why a column of a measured set has no figure."""
    if column.group:
        return f"{entry.name}: no item, or several groups, with {column.group} like {column.match!r}"
    return f"{entry.name}: has no figure {column.score or 'headline'}"


def _figure(column: Column, result: _SetResult) -> Figure | None:
    """The figure of a column in the metrics of its set."""
    metrics = result.metrics
    if metrics is None or metrics["accuracy"] is None:
        return None
    if column.score == "delay":
        return None if result.delay is None else Figure(result.delay, metrics["n"])
    scores = metrics["accuracy"]
    if column.group:
        groups = metrics["by"].get(column.group, {})
        names = [name for name in groups if re.search(column.match, name, re.IGNORECASE)]
        if len(names) != 1:
            return None
        scores = groups[names[0]]
    metric = scores.get(column.score or metrics["headline"])
    if metric is None:
        return None
    low, high = (None if metric.get(end) is None else column.scale * metric[end] for end in ("low", "high"))
    return Figure(column.scale * metric["accuracy"], int(metric["n"]), low, high)
