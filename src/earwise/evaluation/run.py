"""A task through an engine: every item asked once, every completion kept, and the same items again without their sound.

examples -> items (`items.py`) -> `engine.request_pipeline` -> rows scored by the task (`rows.py`) -> `samples.jsonl`,
one line per item, appended batch by batch so that a killed run loses at most one batch -> `metrics.json` (`summary.py`)

An item never leaves the denominator: an unreadable clip, a failed request and an answer that cannot be parsed are rows
like the others, scored 0 and counted by status.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from earwise import progress
from earwise.engine.base import Engine
from earwise.engine.clip_reader import ClipReader
from earwise.engine.request_pipeline import RequestResult, run_requests
from earwise.errors import ConfigError
from earwise.evaluation.controls import Control
from earwise.evaluation.items import EvalItem, build_items
from earwise.evaluation.options import DEFAULT_WINDOW
from earwise.evaluation.options import EvalOptions as EvalOptions
from earwise.evaluation.processes.parts import WHOLE, Part, share_of
from earwise.evaluation.processes.row_log import PARTS, RowLog, merge, open_log
from earwise.evaluation.results import METRICS, SAMPLES, TIMING, EvalSettings, ItemContents, Row, settings_hash
from earwise.evaluation.rows import sample_row
from earwise.evaluation.scores import is_correct
from earwise.evaluation.summary import blind_summary, summarise
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import load_task
from earwise.files import lock_folder, write_json
from earwise.types import Example

BLIND: tuple[Control, ...] = ("silence", "shuffled")
"""The blind controls that are run by default."""


@dataclass(frozen=True, slots=True)
class EvalProgress:
    """How far a run is."""

    control: Control | None
    """The blind control of this run; None: the real sound."""
    done: int
    """Finished items."""
    total: int
    """All items."""
    correct: int
    """Finished items whose headline score is full."""
    errors: int
    """Finished items without a completion."""


OnProgress = Callable[[EvalProgress], None]


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """Everything that decides the rows of one run: its items, and how they are asked and scored."""

    engine: Engine
    examples: Sequence[Example]
    options: EvalOptions
    """The options, with the task's own prompt style where none was asked for."""
    task: Task
    control: Control | None
    items: list[EvalItem]
    settings: EvalSettings

    @property
    def contents(self) -> ItemContents:
        """What the items ask."""
        return {(item.example.id, item.permutation): (item.prompt_text, item.example.answer) for item in self.items}


def plan(
    engine: Engine,
    examples: Sequence[Example],
    options: EvalOptions | None = None,
    task: Task | None = None,
    control: Control | None = None,
) -> EvalPlan:
    """The plan of a run; arguments and errors as for `evaluate`."""
    options, task = options or EvalOptions(), task or load_task("manifest")
    options = replace(options, style=task.style_of(options.style))
    items = build_items(examples, options, control, task)
    return EvalPlan(
        engine, examples, options, task, control, items, _settings(engine, examples, options, task, control)
    )


def evaluate(
    engine: Engine,
    examples: Sequence[Example],
    out: Path,
    options: EvalOptions | None = None,
    *,
    task: Task | None = None,
    control: Control | None = None,
    clip_reader: ClipReader | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Ask an engine every example and write the results; a stopped run with the same settings is continued.

    Args:
        engine: The engine that answers.
        examples: The items, with unique ids. Items without an answer are asked, but do not count in the scores.
        out: Folder for `samples.jsonl`, `settings.json` and `metrics.json`.
        options: Wording, sampling and batches; None takes the defaults.
        task: The task, which scores the completions; None: the task `manifest`.
        control: Blind control that replaces the clips (see `controls.py`); None: the real sound.
        clip_reader: Reader whose cache is shared between several runs on the same clips; None makes one.
        on_progress: Called at the start and after every batch.
    Returns:
        What `metrics.json` holds (see `summary.summarise`).
    Raises:
        ConfigError: if an option is wrong, `out` holds samples made with other settings, or another process is at work
            there.
        DataError: if there are no examples, an id stands twice, or the disk refuses.
        EngineError: if the engine fails on everything; finished rows are kept.
    """
    run_plan = plan(engine, examples, options, task, control)
    with open_log(out, run_plan.settings, run_plan.contents, WHOLE) as log:
        ask(run_plan, out, log, WHOLE, clip_reader=clip_reader, on_progress=on_progress)
        return conclude(run_plan, out, log.rows)


def ask(
    run_plan: EvalPlan,
    out: Path,
    log: RowLog,
    part: Part,
    *,
    clip_reader: ClipReader | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Ask the items of one process that have no row yet, and write into `timing.json` where the time went.

    The file holds the `items` that were asked, the `seconds` that this took, those `model_seconds` that the engine was
    at work, and the share of the time `outside_model`. It stays as it is if nothing was left to ask.

    Args:
        run_plan: The run.
        out: Folder of the run.
        log: Receives the rows.
        part: The process.
        clip_reader: As for `evaluate`.
        on_progress: As for `evaluate`.
    """
    engine, options = run_plan.engine, run_plan.options
    share = share_of(run_plan.items, part)
    remaining = _remaining(share, log.rows)
    reader = clip_reader or ClipReader.for_engine(engine, options.long_audio, options.channel)
    make_row = partial(_row, run_plan=run_plan, reader=reader, out=out)
    pending, num_before = iter(remaining), len(share) - len(remaining)
    own_rows = [row for row in log.rows if (row["id"], row["permutation"]) in {_key(item) for item in share}]
    model_seconds, started = 0.0, perf_counter()

    with progress.task(run_plan.control or "items with sound", len(share), done=num_before) as shown:

        def report_progress() -> None:
            headline_name = run_plan.task.headline_of(options.style)
            state = _progress(own_rows, len(share), run_plan.control, headline_name)
            shown.advance(state.done - shown.done, f"{state.correct} right")
            if on_progress is not None:
                on_progress(state)

        def write_batch(results: list[RequestResult]) -> None:
            nonlocal model_seconds
            for result in results:
                own_rows.append(make_row(next(pending), result))
                log.append(own_rows[-1])
                model_seconds += result.seconds
            report_progress()

        report_progress()
        run_requests(
            engine,
            [item.request for item in remaining],
            options.request_params,
            on_batch=write_batch,
            n=options.samples,
            batch=options.batch,
            clip_reader=reader,
        )
    seconds = perf_counter() - started
    if remaining:
        outside_model = round(max(0.0, 1 - model_seconds / seconds), 4)
        timing = {"items": len(remaining), "seconds": seconds, "model_seconds": model_seconds}
        write_json(log.path.with_name(TIMING), timing | {"outside_model": outside_model})


def conclude(run_plan: EvalPlan, out: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Write the rows of a finished run in the order of its items, and its metrics; the folder's lock must be held.

    Args:
        run_plan: The run.
        out: Folder of the run.
        rows: All its rows.
    Returns:
        What `metrics.json` holds.
    """
    task = run_plan.task
    by_key = {(row["id"], row["permutation"]): row for row in rows}
    ordered = [by_key[_key(item)] for item in run_plan.items]
    if task.add_scores is not None and ordered:
        ordered = task.add_scores(ordered)
    if task.judge_rows is not None and ordered:
        ordered = task.judge_rows(run_plan.examples, ordered, out)
    if ordered != list(rows) or (out / PARTS).exists():
        merge(out, ordered)
    metrics = summarise(ordered, run_plan.settings, task)
    write_json(out / METRICS, metrics)
    return metrics


def evaluate_with_controls(
    engine: Engine,
    examples: Sequence[Example],
    out: Path,
    options: EvalOptions | None = None,
    *,
    task: Task | None = None,
    blind: Sequence[Control] = BLIND,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """`evaluate` with the real sound into `out`, then under each blind control into `out/CONTROL`.

    A control that the items do not allow (one clip, or one answer) is named in the metrics with the reason.

    Args:
        engine: The engine that answers.
        examples: The items.
        out: Folder of the run.
        options: Wording, sampling and batches, the same for all runs; None takes the defaults.
        task: The task, which scores the completions; None: the task `manifest`.
        blind: The controls to run.
        on_progress: Called at the start of each run and after every batch.
    Returns:
        The metrics of the run with the real sound, and under `blind` for each control its metrics and the hearing gain
        with its interval.
    Raises:
        EarwiseError: see `evaluate`.
    """
    options, task = options or EvalOptions(), task or load_task("manifest")
    reader = ClipReader.for_engine(engine, options.long_audio, options.channel)
    with lock_folder(out):
        metrics = evaluate(engine, examples, out, options, task=task, clip_reader=reader, on_progress=on_progress)
        reasons: dict[Control, str] = {}
        for control in blind:
            try:
                evaluate(
                    engine, examples, out / control, options, task=task, control=control, clip_reader=reader,
                    on_progress=on_progress,
                )  # fmt: skip
            except ConfigError as error:
                reasons[control] = left_out(control, out / control, error)
        return with_blind_controls(out, metrics, blind, reasons, task, options.seed)


def left_out(control: Control, folder: Path, error: ConfigError) -> str:
    """Why a control is left out of a run: `shuffled` needs two clips with two answers.

    Raises:
        ConfigError: the error itself, if it says something else.
    """
    if control != "shuffled" or (folder / SAMPLES).exists():
        raise error
    return str(error)


def with_blind_controls(
    out: Path,
    metrics: dict[str, Any],
    blind: Sequence[Control],
    reasons: Mapping[Control, str],
    task: Task,
    seed: int,
) -> dict[str, Any]:
    """The metrics of a run with those of its blind controls, which are finished; `metrics.json` is written anew.

    Args:
        out: Folder of the run.
        metrics: Its metrics with the real sound.
        blind: The controls.
        reasons: Control -> why it was left out.
        task: The task.
        seed: Seed of the intervals.
    """
    metrics["blind"] = {
        control: {"left_out": reasons[control]} if control in reasons else blind_summary(out, out / control, task, seed)
        for control in blind
    }
    write_json(out / METRICS, metrics)
    return metrics


def _key(item: EvalItem) -> tuple[str, int]:
    """What names the row of an item."""
    return item.example.id, item.permutation


def _remaining(items: Sequence[EvalItem], rows: Sequence[Row]) -> list[EvalItem]:
    """The items that have no row yet."""
    finished = {(row["id"], row["permutation"]) for row in rows}
    return [item for item in items if _key(item) not in finished]


def _settings(
    engine: Engine, examples: Sequence[Example], options: EvalOptions, task: Task, control: Control | None
) -> EvalSettings:
    """What `settings.json` holds. Names and values are hashed into every row: a change here would refuse to continue
    the runs of earlier versions."""
    items = [[example.id, example.question, example.choices, example.answer] for example in examples]
    return {
        "model": engine.name, "revision": engine.revision, "style": options.style,
        "decoding": options.sampling_params.as_dict(), "seed": options.seed, "control": control, "scorer": task.scorer,
        "shuffle_options": options.shuffle_options, "permutations": options.permutations,
        "long_audio": options.long_audio, "items": settings_hash(items),
        **({} if options.channel == "mean" else {"channel": options.channel}),
        **({} if options.samples == 1 else {"samples": options.samples}),
        **({} if options.confidence_window == DEFAULT_WINDOW else {"confidence_window": options.confidence_window}),
    }  # fmt: skip


def _row(item: EvalItem, result: RequestResult, *, run_plan: EvalPlan, reader: ClipReader, out: Path) -> Row:
    """The row of one item, with the fields that all rows of a run have in common."""
    options, settings = run_plan.options, run_plan.settings
    truncated = options.long_audio == "truncate" and any(map(reader.is_long, item.clips))
    common = {name: settings[name] for name in ("decoding", "scorer", "style", "control", "model", "revision")}
    common |= {"settings": settings_hash(settings), "seconds": round(result.seconds, 4)}
    return sample_row(item, result, run_plan.task, options, out, truncated) | common


def _progress(rows: Sequence[Row], total: int, control: Control | None, headline: str) -> EvalProgress:
    num_correct = sum(is_correct(row, headline) for row in rows)
    return EvalProgress(control, len(rows), total, num_correct, sum(row["status"] == "error" for row in rows))
