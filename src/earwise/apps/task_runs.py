"""Several tasks in one command: one model, one folder a task, one table.

Above `evaluation`, which runs one task. Called by `earwise evaluate` and by `earwise table`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earwise.apps.benchmark_leaks import report_leaks
from earwise.apps.recipe_eval import THINKING_TOKENS, select_items
from earwise.data import manifest
from earwise.data.manifest_path import task_file
from earwise.engine.base import Engine
from earwise.errors import ConfigError, DataError
from earwise.evaluation.controls import Control
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.processes.parts import WHOLE, Part
from earwise.evaluation.processes.run_part import evaluate_part
from earwise.evaluation.published.choice_file import missing_audio
from earwise.evaluation.results import read_run
from earwise.evaluation.scores import headline
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import load_task
from earwise.files import expand_home, write_json
from earwise.prompts import REASONING_STYLES
from earwise.types import Example

RESULTS = "tasks.json"
MISSING_SHOWN = 5

Notify = Callable[[str], None]
"""Receives one line of progress."""


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """One task of a command, with its file."""

    task: Task
    path: Path
    out: Path
    """Folder of the run."""
    audio_root: Path | None = None

    @property
    def name(self) -> str:
        """Name in the table: that of the folder, which tells two files of one task apart."""
        return self.out.name


@dataclass(frozen=True, slots=True)
class TaskRunOptions:
    """How the tasks of a command are run; every task is asked in the same way."""

    options: EvalOptions = field(default_factory=EvalOptions)
    """Wording, order of options, draws, batches; `style` empty takes each task's own."""
    max_new_tokens: int | None = None
    """Longest completion, in tokens; None: the task's own, or `THINKING_TOKENS` in styles that reason."""
    blind: Sequence[Control] = ("silence", "shuffled")
    conditions: Mapping[str, str] | None = None
    """Field -> value that items must have."""
    limit: int | None = None
    """Number of items, evenly spaced over the file; None: all."""
    part: Part = WHOLE
    """This process, of those that share the command."""
    training: Sequence[Path] = ()
    """Training manifests in which the items are looked for."""
    allow_missing: bool = False
    """Ask items whose clip is missing nothing and count them as wrong, instead of refusing the file."""

    def for_task(self, task: Task) -> EvalOptions:
        """The options with the task's style and longest completion.

        Raises:
            ConfigError: if the task has no such prompt style.
        """
        style = task.style_of(self.options.style)
        default = THINKING_TOKENS if style in REASONING_STYLES else task.max_new_tokens
        sampling = replace(self.options.sampling_params, max_new_tokens=self.max_new_tokens or default)
        return replace(self.options, style=style, sampling_params=sampling)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A finished task."""

    choice: TaskChoice
    metrics: dict[str, Any]
    predictions: Path | None = None
    """The benchmark's submission file, if it has one."""
    num_empty: int = 0
    """Items of the benchmark without a prediction."""
    num_missing: int = 0
    """Items whose clip is missing, which were allowed to be."""


def parse_tasks(names: Sequence[str], data: str | None, audio_root: Path | None, out: Path) -> list[TaskChoice]:
    """The tasks of a command line.

    Args:
        names: `TASK` or `TASK=PATH`.
        data: File of the task that has no path.
        audio_root: Folder of the clips of all tasks; None: each file's own.
        out: Folder of the run; of several tasks each gets a folder in it, named as the task, and as task and file if
            the task stands more than once.
    Raises:
        ConfigError: if a task is unknown, or has no file, or two would share a folder.
    """
    pairs = []
    for name in names:
        task_name, equals, path = name.partition("=")
        if equals and not path:
            raise ConfigError(f"--task {name!r} names no file; write {task_name}=PATH")
        if not equals and data is None:
            raise ConfigError(f"--task {name} has no file; write --task {name}=PATH, or --data PATH for one task")
        if not equals and len(names) > 1:
            raise ConfigError(f"--task {name} has no file; with several tasks write --task {name}=PATH for each")
        pairs.append((task_name, expand_home(path) if path else str(data)))
    if data is not None and any("=" in name for name in names):
        raise ConfigError(f"--data {data} belongs to no task: every --task has its file; leave --data out")
    choices = []
    for task_name, path in pairs:
        folder = out
        if len(pairs) > 1:
            is_repeated = [name for name, _ in pairs].count(task_name) > 1
            stem = re.sub(r"[^\w.-]+", "-", task_name).strip("-")  # a task of one's own is named as file.py:NAME
            folder = out / (f"{stem}-{Path(path).stem}" if is_repeated else stem)
        choices.append(TaskChoice(load_task(task_name), _path(task_name, path), folder, audio_root))
    folders = [choice.out for choice in choices]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise ConfigError(
            f"{twice}: two tasks would write there; rename one of the files, or run it with another --out"
        )
    return choices


def load_items(choice: TaskChoice, options: TaskRunOptions) -> list[Example]:
    """The items of a task that a command asks.

    Raises:
        DataError: if the file is wrong, no item meets the conditions, or clips are missing and may not be.
    """
    examples = choice.task.load(choice.path, choice.audio_root)
    for name, value in (options.conditions or {}).items():
        matches = manifest.select(examples, {name: value})
        if not matches:
            values = sorted({str(getattr(example, name)) or "(none)" for example in examples})
            listed = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
            raise DataError(f"{choice.path}: no item has {name} {value!r}; there are {listed}")
        examples = matches
    examples = select_items(examples, options.limit, choice.out)
    missing = missing_audio(examples)
    if missing and not options.allow_missing:
        listed = ", ".join(map(str, missing[:MISSING_SHOWN])) + (", ..." if len(missing) > MISSING_SHOWN else "")
        raise DataError(
            f"{choice.path}: {len(missing)} clips are missing: {listed}; fetch them, name their folder with "
            "--audio-root, or say --allow-missing, which counts their items as wrong"
        )
    return examples


def run_task(
    engine: Engine, choice: TaskChoice, examples: Sequence[Example], options: TaskRunOptions
) -> TaskResult | None:
    """Ask and score one task.

    Args:
        engine: The engine that answers.
        choice: The task.
        examples: Its items, see `load_items`.
        options: How it is run.
    Returns:
        The result; None if other processes have not finished their parts of it.
    Raises:
        EarwiseError: see `evaluation.run.evaluate`.
    """
    metrics = evaluate_part(
        engine, examples, choice.out, options.for_task(choice.task),
        part=options.part, task=choice.task, blind=options.blind,
    )  # fmt: skip
    if metrics is None:
        return None
    if options.training:
        metrics["training_overlap"] = report_leaks(choice.out, examples, options.training, choice.task)
    missing = set(missing_audio(examples))
    num_missing = sum(any(path in missing for path in example.audio_paths) for example in examples)
    predictions, num_empty = None, 0
    if choice.task.write_predictions is not None:
        predictions = choice.out / choice.task.predictions_name
        num_empty = choice.task.write_predictions(read_run(choice.out), predictions, choice.path)
    return TaskResult(choice, metrics, predictions, num_empty, num_missing)


def write_results(out: Path, results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """Write the table of several tasks, `tasks.json`, and return its rows.

    Args:
        out: Folder of the command.
        results: The finished tasks.
    Returns:
        For each task `task`, `folder`, `n`, the name of the headline `score`, `lower_is_better`, its `value`, `low` and
        `high` (None if no item has a score; `unscored` then says why), and `blind` (control -> value) and `gain`
        (control -> hearing gain).
    """
    rows = []
    for result in results:
        metrics, score = result.metrics, headline(result.metrics)
        blind = {name: headline(metrics, control=name) for name in metrics.get("blind", {})}
        rows.append(
            {
                "task": metrics["task"]["name"],
                "folder": result.choice.name,
                "n": metrics["n"],
                "score": metrics["headline"],
                "lower_is_better": score.lower_is_better if score else False,
                "unscored": "" if score else _reason(result.choice.task),
                "value": score.value if score else None,
                "low": score.low if score else None,
                "high": score.high if score else None,
                "blind": {name: value.value for name, value in blind.items() if value},
                "gain": {
                    name: metrics["blind"][name]["hearing_gain"][metrics["headline"]]["difference"]
                    for name, value in blind.items()
                    if value
                },
            }
        )
    write_json(out / RESULTS, rows)
    return rows


def _reason(task: Task) -> str:
    """Why no item has a score."""
    needs_judge = task.judging is not None and task.judging.alone and task.judge_rows is None
    return "needs --judge" if needs_judge else "no gold answers"


def results_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `write_results` as a table for the terminal, in percent."""
    controls = list(dict.fromkeys(name for row in rows for name in row["blind"]))
    width = max(12, *(len(row["folder"]) for row in rows)) + 2
    head = f"{'':{width}}{'n':>6}  {'score':14}{'value':>8}  {'95 % interval':>15}"
    lines = [head + "".join(f"{name:>11}{'gain':>7}" for name in controls)]
    for row in rows:
        mark = "*" if row["lower_is_better"] else ""
        cells = f"{row['folder']:{width}}{row['n']:>6}  {row['score'] + mark:14}"
        if row["value"] is None:
            lines.append(f"{cells} {row['unscored']}")
            continue
        interval = f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"
        cells += f"{100 * row['value']:>8.1f}  {interval:>15}"
        for name in controls:
            if name in row["blind"]:
                cells += f"{100 * row['blind'][name]:>11.1f}{100 * row['gain'][name]:>+7.1f}"
            else:
                cells += f"{'':18}"
        lines.append(cells)
    if any(row["lower_is_better"] for row in rows):
        lines.append("* less is better; a gain above 0 is better")
    return "\n".join(lines)


def _path(task_name: str, name: str) -> Path:
    """The task's file; for the task `manifest`, and for bundled clips, also a table or data set, which is converted."""
    return task_file(task_name, name, Path())
