"""How far a training run is, read from its folder while it goes on or after it. No torch, and nothing is changed.

`earwise status RUN` prints it. A run writes `process.json` when a stage begins; the rest is in its logs
(`step_log.py`). Whether its process lives is read from the lock on the folder, which the operating system releases when
a process ends, however it ends.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from earwise.errors import ConfigError
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
    process = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
    record = {"stage": stage, "stage_number": number + 1, "num_stages": num_stages, "max_steps": max_steps}
    write_json(out / PROCESS, record | process)


def run_status(out: Path) -> RunStatus:
    """How far a run is.

    Args:
        out: Folder of the run.
    Raises:
        ConfigError: if the folder holds no run.
    """
    if not (out / RECIPE).is_file() and not is_locked(out):
        raise ConfigError(f"{out}: holds no training run (no {RECIPE}); give the --out folder of `earwise train`")
    state: RunState = "running" if is_locked(out) else "finished" if (out / "final").exists() else "stopped"
    try:
        record = json.loads((out / PROCESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return RunStatus(str(out), state)
    rows = [row for row in _last_rows(out / METRICS) if row.get("stage") == record["stage"]]
    evaluations = [row for row in _last_rows(out / EVALUATIONS) if row.get("stage") == record["stage"]]
    seconds = [row["seconds"] for row in rows[-RATE_STEPS:]]
    step = rows[-1]["step"] if rows else 0
    pace = sum(seconds) / len(seconds) if seconds else None
    return RunStatus(
        run=str(out),
        state=state,
        stage=record["stage"],
        stage_number=record["stage_number"],
        num_stages=record["num_stages"],
        step=step,
        max_steps=record["max_steps"],
        seconds_per_step=pace,
        seconds_left=pace * (record["max_steps"] - step) if pace is not None and state == "running" else None,
        seconds_since_step=time.time() - (out / METRICS).stat().st_mtime if rows else None,
        metrics={name: value for name, value in rows[-1].items() if isinstance(value, float)} if rows else None,
        evaluation=evaluations[-1] if evaluations else None,
        process={"pid": record["pid"], "host": record["host"]},
    )


def describe_status(status: RunStatus) -> list[str]:
    """A status as lines for a person to read."""
    lines = [f"{status.run}: {status.state}" + _process_text(status)]
    if not status.stage:
        return lines
    lines.append(
        f"  stage       {status.stage} ({status.stage_number} of {status.num_stages}), "
        f"step {status.step} of {status.max_steps}"
    )
    if status.seconds_per_step is not None:
        left = "" if status.seconds_left is None else f", {duration_text(status.seconds_left)} left in this stage"
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
        names = [name for name in status.evaluation if name not in ("step", "stage", "seconds", "best")]
        values = ", ".join(f"{name} {status.evaluation[name]:.4g}" for name in names)
        best = ", the best so far" if status.evaluation.get("best") else ""
        lines.append(f"  evaluation  after step {status.evaluation['step']}: {values}{best}")
    if status.state == "stopped":
        lines.append(f"  continue    earwise train --resume {status.run}")
    return lines


def _process_text(status: RunStatus) -> str:
    if status.process is None or status.state != "running":
        return ""
    return f" (process {status.process['pid']} on {status.process['host']})"


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
