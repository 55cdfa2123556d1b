"""The log of a stage's steps: rows of `metrics.jsonl`, lines of progress, and a report at the end of the stage.

Used by the trainer. Keys of a row without a slash are common to all stages (`step`, `stage`, `lr`, `seconds`,
`data_seconds`, `tokens_per_s`, `audio_s_per_s`, `mfu`, `grad_norm`, `ids`); metrics of the stage are under `KIND/name`,
the seconds of phases under `phase/name`. Values that are not finite are left out. Evaluations during a stage are rows
of `evaluations.jsonl`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earwise.files import append_jsonl, read_log, write_jsonl
from earwise.training.distributed import parallel
from earwise.training.limits.step_limits import StepLimits
from earwise.training.logging.run_status import EVALUATIONS, LIMITS, RATE_STEPS
from earwise.training.logging.skip_report import skip_summary
from earwise.training.logging.throughput import Throughput, duration_text
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
        on_evaluation: Receives the metrics of each evaluation, under `eval/NAME`, after they are written.
    """

    metrics: Path
    samples: Path | None = None
    on_step: Callable[[dict[str, Any]], None] = lambda row: None
    on_evaluation: Callable[[dict[str, Any]], None] = lambda row: None

    @property
    def evaluations(self) -> Path:
        """File `evaluations.jsonl` beside `metrics`, one row per evaluation during a stage."""
        return self.metrics.with_name(EVALUATIONS)


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
        throughput: Says what share of the hardware's peak the training reaches; None: not logged.
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
        throughput: Throughput | None = None,
    ) -> None:
        self._files, self._kind, self._stage, self._max_steps = files, kind, stage, max_steps
        self._profiler, self._profile, self._notify = profiler, profile, notify
        self._phase_seconds: list[dict[str, float]] = []
        records = profile and parallel.is_main_process()
        self._limits = StepLimits(profiler, stage, files.metrics.parent / LIMITS, notify) if records else None
        self._throughput = throughput
        self._num_rollbacks = 0
        self._finished_at: deque[tuple[int, float]] = deque(maxlen=RATE_STEPS + 1)
        """Number and time (`time.monotonic`) of the last finished steps."""

    def recorded(self) -> AbstractContextManager[None]:
        """The context of a step: with `profile`, the operators of some steps are set against the machine's peak."""
        return self._limits.step() if self._limits else nullcontext()

    def count_rollback(self) -> None:
        """Count a rollback in the row of the next step, and forget the pace of the steps before."""
        self._num_rollbacks += 1
        self._finished_at.clear()

    def write_evaluation(self, number: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Write the row of an evaluation after step `number`, and a line of progress.

        Args:
            number: Number of finished steps.
            metrics: What was measured.
            is_best: Whether it is the best evaluation of the stage so far.
        """
        if not parallel.is_main_process():
            return
        values = {name: value for name, value in metrics.items() if math.isfinite(value)}
        _delete_rows_after(self._files.evaluations, self._stage, number - 1)  # of a process that ended meanwhile
        append_jsonl(self._files.evaluations, {"step": number, "stage": self._stage} | values | {"best": is_best})
        row = {"step": number, "stage": self._stage} | {f"eval/{name}": value for name, value in values.items()}
        self._files.on_evaluation(row)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "seconds")
        self._notify(
            f"{self._kind} evaluation after step {number}: {shown}{', the best so far' if is_best else ''} "
            f"({duration_text(metrics['seconds'])})"
        )

    def delete_after(self, step: int) -> bool:
        """Delete the rows of steps after `step`, which a resumed stage runs again; returns whether there were any in
        `metrics.jsonl`."""
        if not parallel.is_main_process():
            return False
        if self._files.samples:
            _delete_rows_after(self._files.samples, self._stage, step)
        _delete_rows_after(self._files.evaluations, self._stage, step)
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
            if self._limits:
                self._limits.add_seconds(self._phase_seconds[-1])
            row |= {f"phase/{name}": value for name, value in self._phase_seconds[-1].items()}
        if self._throughput is not None and (mfu := self._throughput.mfu(record.sums["tokens"], seconds)):
            row["mfu"] = mfu
        metrics = record.metrics | record.sums
        if self._num_rollbacks:
            metrics["rollbacks"], self._num_rollbacks = float(self._num_rollbacks), 0
        row |= {"grad_norm": record.grad_norm} | {f"{self._kind}/{name}": value for name, value in metrics.items()}
        row = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        if record.example_ids:
            row["ids"] = record.example_ids
        if parallel.is_main_process():
            append_jsonl(self._files.metrics, row)
            self._files.on_step(row)
            progress = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name in PROGRESS_METRICS)
            self._notify(
                f"{self._kind} step {number}/{self._max_steps}: {progress}, {seconds:.1f} s{self._time_left(number)}"
            )
            if len(self._phase_seconds) == PROFILED_STEPS:
                self._describe_phases(number)

    def _time_left(self, number: int) -> str:
        """The end of a line of progress: how long the remaining steps take at the pace of the last ones, with
        evaluations and checkpoints between them."""
        self._finished_at.append((number, time.monotonic()))
        (first, since), (last, until) = self._finished_at[0], self._finished_at[-1]
        remaining = self._max_steps - number
        return (
            f", {duration_text(remaining * (until - since) / (last - first))} left"
            if last > first and remaining
            else ""
        )

    def report(self, number: int) -> None:
        """At the end of the stage, after step `number`: report the time of the last steps and what was skipped."""
        if parallel.is_main_process():
            if self._phase_seconds:
                self._describe_phases(number)
            if self._limits:
                self._limits.report()
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
