"""A paper's tables with a model's figures beside the published ones.

Every set of the paper is looked for below a data folder, measured as its task asks, and its figures are taken from the
metrics of that run. A set that is missing, hidden, unreadable or without its judge is named in the result with what to
do, and its columns say so; nothing is left out in silence. A folder with a file `FIXTURES.txt` holds hand-made rows,
and the tables say so.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earwise.apps.paper_tables.published import BenchmarkSet, Column, Paper, PaperTable, benchmark_sets
from earwise.apps.task_runs import TaskChoice, TaskRunOptions, load_items, run_task
from earwise.engine.base import Engine
from earwise.errors import DataError
from earwise.evaluation.judge.estimate import expected_cost
from earwise.evaluation.judge.models import JudgeModel
from earwise.evaluation.judge.panel import JudgeCost, JudgePanel, judged
from earwise.evaluation.results import read_run
from earwise.evaluation.scores import mean_delay
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import TASKS, load_task
from earwise.types import Example

FIXTURES = "FIXTURES.txt"
NEEDS_JUDGE = "needs --judge"
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
    reasons: tuple[str, ...]
    """One a column: in a few words why there is no figure, or not of all items; empty where nothing is missing."""
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
    reason: str = ""
    """What its columns say in place of a figure."""


def measure_paper(
    paper: Paper,
    data: Path,
    engine: Engine,
    out: Path,
    options: TaskRunOptions | None = None,
    *,
    judges: Sequence[JudgeModel] = (),
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
        judges: Models that score the sets whose measure is a judge's; none: those columns stay empty and say so.
        notify: Receives progress lines.
    Raises:
        DataError: if none of the sets is there.
        EngineError: if a judge is unreachable, or some of its replies cannot be read.
    """
    sets = benchmark_sets()
    options = options or TaskRunOptions(blind=())
    _require_sets(paper, data)
    results = {}
    for key in paper.sets:
        notify(f"{key}: {sets[key].name}")
        results[key] = _measure_set(sets[key], data, engine, out / key, options, _Judges(tuple(judges), notify))
    tables = tuple(_filled(table, results, sets) for table in paper.tables)
    return MeasuredPaper(paper, engine.name, tables, (data / FIXTURES).exists())


def estimate_judges(
    paper: Paper,
    data: Path,
    out: Path,
    options: TaskRunOptions,
    judges: Sequence[JudgeModel],
) -> list[tuple[str, JudgeCost]]:
    """What the judges would be asked about answers of half the allowed length; nothing is asked.

    Args:
        paper: The paper.
        data: Folder with the sets.
        out: Folder of the runs, whose judgements are not asked again.
        options: How sets are run.
        judges: The judges.
    Returns:
        Key of each set that is there and needs a judge, with the cost of each judge.
    Raises:
        DataError: if none of the sets is there, or one of them cannot be read.
    """
    _require_sets(paper, data)
    costs = []
    for key in paper.sets:
        entry = benchmark_sets()[key]
        if not entry.judge or not (data / entry.file).exists():
            continue
        choice, set_options = _judged_choice(entry, data, out / key, options, _Judges(tuple(judges), lambda _: None))
        task = choice.task
        if task.judging is None:
            continue
        examples = load_items(choice, set_options)
        answer_tokens = set_options.for_task(task).sampling_params.max_new_tokens // 2
        panel = JudgePanel(task.judging, tuple(judges))
        costs += [(key, cost) for cost in expected_cost(panel, task, examples, answer_tokens, out / key)]
    return costs


@dataclass(frozen=True, slots=True)
class _Judges:
    """The judges of a paper, and who receives their cost."""

    models: tuple[JudgeModel, ...]
    notify: Notify

    def behind(self, task: Task) -> Task:
        """The task, scored by the judges if it can be."""
        if not self.models or task.judging is None:
            return task
        panel = JudgePanel(task.judging, self.models, on_cost=lambda cost: self.notify(cost.describe()))
        return judged(task, panel)


def _require_sets(paper: Paper, data: Path) -> None:
    """Refuse a folder without any set of the paper.

    Raises:
        DataError: with the places of the first sets.
    """
    files = [benchmark_sets()[key].file for key in paper.sets]
    if not any((data / file).exists() for file in files):
        wanted = ", ".join(files[:4])
        raise DataError(f"{data}: holds none of the {len(files)} sets of this paper; put them there, as {wanted}, ...")


def _judged_choice(
    entry: BenchmarkSet, data: Path, out: Path, options: TaskRunOptions, judges: _Judges
) -> tuple[TaskChoice, TaskRunOptions]:
    """A set's task behind its judges, and the options in the set's own style."""
    task = load_task(entry.task)
    choice = TaskChoice(judges.behind(task) if entry.judge else task, data / entry.file, out)
    if entry.style:
        options = replace(options, options=replace(options.options, style=entry.style))
    return choice, options


def _measure_set(
    entry: BenchmarkSet, data: Path, engine: Engine, out: Path, options: TaskRunOptions, judges: _Judges
) -> _SetResult:
    """Run one set."""
    if entry.task not in TASKS:
        return _not_measured(entry, f"this version has no task {entry.task!r}", "no such task")
    if not (data / entry.file).exists():
        return _not_measured(entry, f"put the published file at {entry.file}", "no file")
    choice, options = _judged_choice(entry, data, out, options, judges)
    try:
        examples = load_items(choice, options)
    except DataError as error:
        return _not_measured(entry, str(error), "unreadable file")
    result = run_task(engine, choice, examples, options)
    if result is None:
        return _SetResult(None, notes=(f"{entry.name}: other processes are still at work on it",), reason="unfinished")
    notes, reason = [], ""
    if entry.judge and not judges.models and _needs_judge(choice.task, examples):
        reason = NEEDS_JUDGE
        notes.append(
            f"{entry.name}: its measure needs a judge, so it is missing here or holds only the items that need none; "
            "add --judge MODEL"
        )
    elif entry.hidden or result.metrics["accuracy"] is None:
        reason = "answers hidden"
        notes.append(f"{entry.name}: its answers are hidden; submit {out.name}/predictions.json for a score")
    if entry.items is not None and len(examples) != entry.items:
        notes.append(f"{entry.name}: {len(examples)} of {entry.items} items")
    edition = next((str(example.meta["version"]) for example in examples if "version" in example.meta), "")
    if entry.version and not edition.startswith(entry.version):
        notes.append(f"{entry.name}: the file is another edition, {edition}; never compare across editions")
    if errors := result.metrics["error"]["count"]:
        notes.append(f"{entry.name}: {errors} items had no completion and count as wrong")
    notes += [f"{entry.name}: {remark}" for remark in result.metrics.get("remarks", ())]
    return _SetResult(result.metrics, mean_delay(read_run(out)), tuple(notes), reason)


def _not_measured(entry: BenchmarkSet, remedy: str, reason: str) -> _SetResult:
    """The result of a set that is not run."""
    return _SetResult(None, notes=(f"{entry.name}: not measured, {remedy}",), reason=reason)


def _needs_judge(task: Task, examples: Sequence[Example]) -> bool:
    """Whether the paper's measure of a set needs a judge: beside the task's own scores, or for some of its items."""
    return task.judging is not None and (
        not task.judging.alone or any(task.waits_for_judge(example) for example in examples)
    )


def _filled(table: PaperTable, results: Mapping[str, _SetResult], sets: Mapping[str, BenchmarkSet]) -> MeasuredTable:
    """A table with our figures."""
    figures, reasons, notes = [], [], list(table.notes)
    for column in table.columns:
        result = results[column.set]
        figure = _figure(column, result)
        reason = "" if column.score == "delay" and result.reason == NEEDS_JUDGE else result.reason
        is_scored = result.metrics is not None and result.metrics["accuracy"] is not None
        if figure is None and is_scored and reason != NEEDS_JUDGE:
            notes.append(_unmeasured(column, sets[column.set]))
            reason = reason or "no such figure"
        notes += result.notes
        figures.append(figure)
        reasons.append(reason)
    return MeasuredTable(table, tuple(figures), tuple(reasons), tuple(dict.fromkeys(notes)))


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
