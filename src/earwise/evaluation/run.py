"""A task through an engine: every item asked once, every completion kept, and the same items again without their sound.

examples -> items (`items.py`) -> `engine.request_pipeline` -> rows scored by the task (`rows.py`) -> `samples.jsonl`,
one line per item, appended batch by batch so that a killed run loses at most one batch -> `metrics.json` (`summary.py`)

An item never leaves the denominator: an unreadable clip, a failed request and an answer that cannot be parsed are rows
like the others, scored 0 and counted by status.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from earwise import progress
from earwise.engine.base import Engine
from earwise.engine.clip_reader import ClipReader
from earwise.engine.request_pipeline import RequestResult, run_requests
from earwise.errors import ConfigError
from earwise.evaluation.controls import Control
from earwise.evaluation.items import EvalItem, build_items
from earwise.evaluation.options import EvalOptions as EvalOptions
from earwise.evaluation.results import METRICS, SAMPLES, EvalSettings, Row, resume, settings_hash
from earwise.evaluation.rows import sample_row
from earwise.evaluation.scores import is_correct
from earwise.evaluation.summary import blind_summary, summarise
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import load_task
from earwise.files import append_jsonl, write_json, write_jsonl
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
        ConfigError: if an option is wrong, or `out` holds samples made with other settings.
        DataError: if there are no examples, an id stands twice, or the disk refuses.
        EngineError: if the engine fails on everything; finished rows are kept.
    """
    options, task = options or EvalOptions(), task or load_task("manifest")
    options = replace(options, style=task.style_of(options.style))
    items = build_items(examples, options, control, task)
    settings = _settings(engine, examples, options, task, control)
    contents = {(item.example.id, item.permutation): (item.prompt_text, item.example.answer) for item in items}
    rows = resume(out, settings, contents)
    remaining = _remaining(items, rows)
    reader = clip_reader or ClipReader.for_engine(engine, options.long_audio, options.channel)
    make_row = partial(_row, task=task, options=options, settings=settings, reader=reader, out=out)
    pending = iter(remaining)

    with progress.task(control or "items with sound", len(items), done=len(items) - len(remaining)) as shown:

        def report_progress() -> None:
            state = _progress(rows, len(items), control, task.headline_of(options.style))
            shown.advance(state.done - shown.done, f"{state.correct} right")
            if on_progress is not None:
                on_progress(state)

        def write_batch(results: list[RequestResult]) -> None:
            for result in results:
                rows.append(make_row(next(pending), result))
                append_jsonl(out / SAMPLES, rows[-1])
            report_progress()

        report_progress()
        run_requests(
            engine,
            [item.request for item in remaining],
            options.sampling_params,
            on_batch=write_batch,
            batch=options.batch,
            clip_reader=reader,
        )
    if task.add_scores is not None and rows:
        rows = task.add_scores(rows)
        write_jsonl(out / SAMPLES, rows)
    if task.judge_rows is not None and rows:
        rows = task.judge_rows(examples, rows, out)
        write_jsonl(out / SAMPLES, rows)
    metrics = summarise(rows, settings, task)
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
    metrics = evaluate(engine, examples, out, options, task=task, clip_reader=reader, on_progress=on_progress)
    metrics["blind"] = {}
    for control in blind:
        folder = out / control
        try:
            evaluate(
                engine, examples, folder, options, task=task, control=control, clip_reader=reader,
                on_progress=on_progress,
            )  # fmt: skip
        except ConfigError as error:
            if control != "shuffled" or (folder / SAMPLES).exists():
                raise
            metrics["blind"][control] = {"left_out": str(error)}
            continue
        metrics["blind"][control] = blind_summary(out, folder, task, options.seed)
    write_json(out / METRICS, metrics)
    return metrics


def _remaining(items: Sequence[EvalItem], rows: Sequence[Row]) -> list[EvalItem]:
    """The items that have no row yet."""
    finished = {(row["id"], row["permutation"]) for row in rows}
    return [item for item in items if (item.example.id, item.permutation) not in finished]


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
    }  # fmt: skip


def _row(
    item: EvalItem,
    result: RequestResult,
    *,
    task: Task,
    options: EvalOptions,
    settings: EvalSettings,
    reader: ClipReader,
    out: Path,
) -> Row:
    """The row of one item, with the fields that all rows of a run have in common."""
    truncated = options.long_audio == "truncate" and any(map(reader.is_long, item.clips))
    common = {name: settings[name] for name in ("decoding", "scorer", "style", "control", "model", "revision")}
    common |= {"settings": settings_hash(settings), "seconds": round(result.seconds, 4)}
    return sample_row(item, result, task, options.style, out, truncated) | common


def _progress(rows: Sequence[Row], total: int, control: Control | None, headline: str) -> EvalProgress:
    num_correct = sum(is_correct(row, headline) for row in rows)
    return EvalProgress(control, len(rows), total, num_correct, sum(row["status"] == "error" for row in rows))
