"""How far a training run is, read from its folder while it goes on or after it. No torch, and nothing is changed.

`earwise status RUN` prints it. A run notes in `process.json` what its process does, and at the end why it ended and
what was measured; the rest is in its logs (`step_log.py`). Whether its process lives is read from the lock on the
folder, which the operating system releases when a process ends, however it ends.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from earwise.errors import ConfigError, DataError, EarwiseError
from earwise.files import is_locked, write_json
from earwise.training.logging.throughput import duration_text

PROCESS, RECIPE, METRICS, EVALUATIONS = "process.json", "recipe.json", "metrics.jsonl", "evaluations.jsonl"
LIMITS = "limits.json"
"""Files of a run: the process at work, the resolved recipe, the log of steps, and the evaluations during stages."""
RATE_STEPS = 20
"""Number of last steps whose pace says when the stage ends."""
TAIL_BYTES = 1 << 20
"""Bytes at the end of a log that are read: enough for the last steps, however long the run is."""

RunState = Literal["running", "stopped", "finished"]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is.

    Attributes:
        run: Folder of the run.
        state: `running` while its process lives, `finished` with the final model written, else `stopped`.
        stage: Name of the folder of the current or last stage; "" before the first.
        stage_number: Its number, from 1.
        num_stages: Number of stages.
        step: Finished steps of the stage.
        max_steps: Its steps in all.
        seconds_per_step: Mean time of the last steps; None before the first.
        seconds_left: Time to the end of the stage at this pace; None where it is not known.
        seconds_since_step: Time since the last finished step; None before the first.
        metrics: Values of the last step by their names in the log.
        evaluation: The newest evaluation of the stage; None if there is none.
        best_evaluation: The best evaluation of the stage so far; None if there is none.
        results: What was measured before and after training, with `manifest`, `before` and `after`.
        activity: What the process does, or did last; "" where it is not known.
        ended: Why the process ended without finishing the run; None where it did not say.
        process: Process that works, or worked, on the run: `pid`, `host`.
    """

    run: str
    state: RunState
    stage: str = ""
    stage_number: int = 0
    num_stages: int = 0
    step: int = 0
    max_steps: int = 0
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    seconds_since_step: float | None = None
    metrics: dict[str, float] | None = None
    evaluation: dict[str, Any] | None = None
    best_evaluation: dict[str, Any] | None = None
    results: tuple[dict[str, Any], ...] = ()
    activity: str = ""
    ended: str | None = None
    process: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The status as plain values."""
        return asdict(self)


def write_process(out: Path, stage: str, number: int, num_stages: int, max_steps: int) -> None:
    """Record that this process begins, or goes on with, a stage.

    Args:
        out: Folder of the run.
        stage: Name of the stage's folder.
        number: Number of the stage, from 0.
        num_stages: Number of stages.
        max_steps: Optimizer steps of the stage.
    """
    position = {"stage": stage, "stage_number": number + 1, "num_stages": num_stages, "max_steps": max_steps}
    write_json(out / PROCESS, _process_record(out) | position | _this_process() | {"activity": "training"})


def note_process(out: Path, **values: Any) -> None:
    """Change entries of `process.json`. A disk that is full does not end the run because of this note.

    Args:
        out: Folder of the run.
        values: For example `activity`, what the process does now, or `results`.
    """
    with suppress(DataError):
        write_json(out / PROCESS, _process_record(out) | values)


@contextmanager
def recorded_process(out: Path) -> Iterator[None]:
    """While entered, this process works on the run; an error or interrupt inside is noted as the reason of its end."""
    note_process(out, **_this_process(), activity="starting", ended=None)
    try:
        yield
    except BaseException as error:
        is_expected = isinstance(error, EarwiseError | KeyboardInterrupt)
        reason = str(error) or "interrupted" if is_expected else f"{type(error).__name__}: {error}"
        note_process(out, ended=" ".join(reason.split()))
        raise


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}


def _process_record(out: Path) -> dict[str, Any]:
    """Content of `process.json`; empty if there is none."""
    try:
        record: dict[str, Any] = json.loads((out / PROCESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def run_status(out: Path) -> RunStatus:
    """How far a run is.

    Args:
        out: Folder of the run.
    Raises:
        ConfigError: if the folder holds no run.
    """
    record = _process_record(out)
    if not record and not (out / RECIPE).is_file() and not is_locked(out):
        raise ConfigError(f"{out}: holds no training run (no {RECIPE}); give the --out folder of `earwise train`")
    state: RunState = "running" if is_locked(out) else "finished" if (out / "final").exists() else "stopped"
    status = RunStatus(
        run=str(out),
        state=state,
        results=tuple(record.get("results", ())),
        activity=record.get("activity", ""),
        ended=record.get("ended"),
        process={"pid": record["pid"], "host": record["host"]} if record else None,
    )
    if "stage" not in record:
        return status
    rows = [row for row in _last_rows(out / METRICS) if row.get("stage") == record["stage"]]
    evaluations = [row for row in _last_rows(out / EVALUATIONS) if row.get("stage") == record["stage"]]
    seconds = [row["seconds"] for row in rows[-RATE_STEPS:]]
    step = rows[-1]["step"] if rows else 0
    pace = sum(seconds) / len(seconds) if seconds else None
    left = None if pace is None else (pace + _evaluation_pace(evaluations)) * (record["max_steps"] - step)
    return replace(
        status,
        stage=record["stage"],
        stage_number=record["stage_number"],
        num_stages=record["num_stages"],
        step=step,
        max_steps=record["max_steps"],
        seconds_per_step=pace,
        seconds_left=left if state == "running" else None,
        seconds_since_step=time.time() - (out / METRICS).stat().st_mtime if rows else None,
        metrics={name: value for name, value in rows[-1].items() if isinstance(value, float)} if rows else None,
        evaluation=evaluations[-1] if evaluations else None,
        best_evaluation=next((row for row in reversed(evaluations) if row.get("best")), None),
    )


def _evaluation_pace(evaluations: list[dict[str, Any]]) -> float:
    """Seconds that evaluations take for each step, at the length and distance of the last one."""
    if not evaluations:
        return 0.0
    steps = [0, *(row["step"] for row in evaluations)]
    return float(evaluations[-1].get("seconds", 0.0)) / max(1, steps[-1] - steps[-2])


def describe_status(status: RunStatus) -> list[str]:
    """A status as lines for a person to read."""
    lines = [f"{status.run}: {status.state}" + _process_text(status)]
    if status.stage:
        lines += _stage_lines(status)
    lines += [f"  measured    {result_text(row['manifest'], row['before'], row['after'])}" for row in status.results]
    if status.state == "finished":
        lines.append(f"  model       {status.run}/final")
    elif status.state == "stopped":
        if status.process is not None:
            lines.append(f"  ended       {status.ended or 'without a word: killed, or its machine went down'}")
        begun = (Path(status.run) / RECIPE).is_file()
        lines.append(f"  continue    {f'earwise train --resume {status.run}' if begun else 'with the same command'}")
    return lines


def _stage_lines(status: RunStatus) -> list[str]:
    """Lines about the stage that a run is in, or ended in."""
    early = " (ended early)" if status.state == "finished" and status.step < status.max_steps else ""
    lines = [
        f"  stage       {status.stage} ({status.stage_number} of {status.num_stages}), "
        f"step {status.step} of {status.max_steps}{early}"
    ]
    if status.seconds_per_step is not None:
        left = f", {duration_text(status.seconds_left)} left in this stage" if status.seconds_left else ""
        lines.append(f"  pace        {status.seconds_per_step:.2f} s a step{left}")
    if status.seconds_since_step is not None and status.state == "running":
        lines.append(f"  last step   {duration_text(status.seconds_since_step)} ago")
    if status.metrics is not None:
        kind = next((name.split("/")[0] for name in status.metrics if name.endswith("/loss")), "")
        shown = [name for name in status.metrics if name.startswith(f"{kind}/")] + ["lr", "grad_norm"]
        values = ", ".join(f"{name} {status.metrics[name]:.4g}" for name in shown if name in status.metrics)
        lines.append(f"  step        {values}")
        speed = [name for name in ("tokens_per_s", "audio_s_per_s", "mfu") if name in status.metrics]
        lines.append("  speed       " + ", ".join(f"{name} {status.metrics[name]:.4g}" for name in speed))
    if status.evaluation is not None:
        best = ", the best so far" if status.evaluation.get("best") else ""
        lines.append(f"  evaluation  {_evaluation_text(status.evaluation)}{best}")
        if status.best_evaluation is not None and not best:
            lines.append(f"  best        {_evaluation_text(status.best_evaluation)}")
    return lines


def _evaluation_text(row: dict[str, Any]) -> str:
    names = [name for name in row if name not in ("step", "stage", "seconds", "best")]
    return f"after step {row['step']}: " + ", ".join(f"{name} {row[name]:.4g}" for name in names)


def result_text(manifest: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """What an entry of the recipe's `eval:` gave before and after training, in a line.

    Args:
        manifest: The entry's manifest.
        before: Its figures before training, as `apps/recipe_eval.headline_figures` gives them.
        after: Those after training.
    """
    return f"{manifest}: {_figures_text(before)} -> {_figures_text(after)}"


def _figures_text(figures: dict[str, Any]) -> str:
    """Accuracy with its n, and what else was measured."""
    others = "".join(
        f", {name.replace('_accuracy', '')} {figures[name]:.3f}"
        for name in ("blind_accuracy", "format")
        if figures[name] is not None
    )
    name = f"{figures['score']} " if figures.get("lower_is_better") else ""
    return f"{name}{figures['accuracy']:.3f} (n {figures['n']}{others})"


def _process_text(status: RunStatus) -> str:
    if status.process is None or status.state != "running":
        return ""
    activity = f", {status.activity}" if status.activity else ""
    return f" (process {status.process['pid']} on {status.process['host']}){activity}"


def _last_rows(log: Path) -> list[dict[str, Any]]:
    """The rows at the end of a log; an incomplete last line, which is being written, is left out."""
    try:
        with log.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - TAIL_BYTES))
            data = handle.read()
    except OSError:
        return []
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    if size > TAIL_BYTES:
        lines = lines[1:]  # its beginning is missing
    return [json.loads(line) for line in lines if line.strip()]
