"""The log of a stage's steps: rows of `metrics.jsonl`, lines of progress, and a report at the end of the stage.

Used by the trainer. Keys of a row without a slash are common to all stages (`step`, `stage`, `lr`, `seconds`,
`data_seconds`, `tokens_per_s`, `audio_s_per_s`, `grad_norm`, `ids`); metrics of the stage are under `KIND/name`, the
seconds of phases under `phase/name`. Values that are not finite are left out.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earwise.files import append_jsonl, read_log, write_jsonl
from earwise.training.distributed import parallel
from earwise.training.logging.skip_report import skip_summary
from earwise.training.profiler import Profiler, describe

PROFILED_STEPS = 10
"""Number of steps that one line about the time of the phases covers."""
PROGRESS_METRICS = (
    "loss", "accuracy", "reward", "format", "flat_groups", "kl", "margin", "chain_tokens", "delay", "bad_loss",
)  # fmt: skip
"""Metrics that the line of progress of a step names."""


@dataclass(frozen=True, slots=True)
class LogFiles:
    """Where a stage logs.

    Attributes:
        metrics: File `metrics.jsonl` of the run, one row per step.
        samples: File of the stage's samples (`rollouts.jsonl`), whose rows of lost steps are deleted on resume; None if
            there is none.
        on_step: Receives each row of `metrics` after it is written.
    """

    metrics: Path
    samples: Path | None = None
    on_step: Callable[[dict[str, Any]], None] = lambda row: None


@dataclass(slots=True)
class StepRecord:
    """What is known of a step while it is under way.

    Attributes:
        started: Time at which the step began, in seconds (`time.monotonic`).
        data_ready: Time at which its micro-batches were made.
        metrics: Metrics of the stage's data.
        example_ids: Ids of the rows of the step.
        learning_rate: Learning rate of the decoder's parameters.
        sums: Loss and its metrics, and `tokens`, of all processes.
        grad_norm: Gradient norm before clipping.
    """

    started: float
    data_ready: float
    metrics: dict[str, float]
    example_ids: list[str]
    learning_rate: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are finite."""
        return math.isfinite(self.sums.get("loss", 0.0)) and math.isfinite(self.grad_norm)


class StepLog:
    """Logs the steps of a stage; only the first process writes.

    Args:
        files: Log files.
        kind: Kind of the stage, the prefix of its metrics.
        stage: Name of the stage's folder, in the rows.
        max_steps: Optimizer steps in all, for the lines of progress.
        profiler: Measures the phases of a step.
        profile: Whether the seconds of each phase are logged, and described every `PROFILED_STEPS` steps.
        notify: Receives progress.
    """

    def __init__(
        self,
        files: LogFiles,
        kind: str,
        stage: str,
        *,
        max_steps: int,
        profiler: Profiler,
        profile: bool,
        notify: Callable[[str], None],
    ) -> None:
        self._files, self._kind, self._stage, self._max_steps = files, kind, stage, max_steps
        self._profiler, self._profile, self._notify = profiler, profile, notify
        self._phase_seconds: list[dict[str, float]] = []

    def delete_after(self, step: int) -> bool:
        """Delete the rows of steps after `step`, which a resumed stage runs again; returns whether there were any in
        `metrics.jsonl`."""
        if not parallel.is_main_process():
            return False
        if self._files.samples:
            _delete_rows_after(self._files.samples, self._stage, step)
        return _delete_rows_after(self._files.metrics, self._stage, step)

    def write(self, number: int, record: StepRecord) -> None:
        """Write the row of a finished step (numbered from 1), and a line of progress."""
        seconds = time.monotonic() - record.started
        row: dict[str, Any] = {
            "step": number,
            "stage": self._stage,
            "lr": record.learning_rate,
            "seconds": seconds,
            "data_seconds": record.data_ready - record.started,
            "tokens_per_s": record.sums["tokens"] / seconds,
            "audio_s_per_s": record.metrics.get("audio_s", 0.0) / seconds,
        }
        if self._profile:
            self._phase_seconds.append(self._profiler.split())
            row |= {f"phase/{name}": value for name, value in self._phase_seconds[-1].items()}
        metrics = record.metrics | record.sums | ({} if record.is_finite else {"bad_loss": 1.0})
        row |= {"grad_norm": record.grad_norm} | {f"{self._kind}/{name}": value for name, value in metrics.items()}
        row = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        if record.example_ids:
            row["ids"] = record.example_ids
        if parallel.is_main_process():
            append_jsonl(self._files.metrics, row)
            self._files.on_step(row)
            progress = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name in PROGRESS_METRICS)
            self._notify(f"{self._kind} step {number}/{self._max_steps}: {progress}, {seconds:.1f} s")
            if len(self._phase_seconds) == PROFILED_STEPS:
                self._describe_phases(number)

    def report(self, number: int) -> None:
        """At the end of the stage, after step `number`: report the time of the last steps and what was skipped."""
        if parallel.is_main_process():
            if self._phase_seconds:
                self._describe_phases(number)
            for line in skip_summary(read_log(self._files.metrics), self._stage, self._kind):
                self._notify(line)

    def _describe_phases(self, last: int) -> None:
        """Report where the time of the last steps went, and start collecting anew."""
        names = dict.fromkeys(name for seconds in self._phase_seconds for name in seconds)
        total = {name: sum(seconds.get(name, 0.0) for seconds in self._phase_seconds) for name in names}
        num_steps = len(self._phase_seconds)
        self._notify(f"{self._kind} profile of steps {last - num_steps + 1}-{last}: {describe(total, num_steps)}")
        self._phase_seconds.clear()


def _delete_rows_after(log: Path, stage: str, step: int) -> bool:
    """Delete the rows of a log that a stage wrote after a step, so that a resumed stage logs no step twice.

    Args:
        log: JSON-lines file whose rows have `stage` and `step`.
        stage: Name of the stage's folder.
        step: The last step whose rows stay.
    Returns:
        Whether there were such rows.
    """
    rows = read_log(log)
    remaining = [row for row in rows if row.get("stage") != stage or row["step"] <= step]
    if len(remaining) == len(rows):
        return False
    write_jsonl(log, remaining)
    return True
