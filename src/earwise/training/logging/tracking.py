"""Sends the logs of a stage to trackers (TensorBoard, wandb, trackio) while it runs.

`metrics.jsonl` and `rollouts.jsonl` are the record of a run: `training/run.py` writes a row there first and then passes
it on to `Tracking`. A tracker that fails is reported once, its lost steps are counted, and it is disabled if it keeps
failing; training goes on in any case.

No step is logged twice when a stage is resumed. TensorBoard discards what comes after the checkpoint; the other
trackers cannot, so the last step they were given is stored beside the stage, and steps up to it (whose values are the
same) are not sent again.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earwise.audio import decode
from earwise.config.resolve import require, resolve_entry
from earwise.data.clip_fields import clips_of_row
from earwise.errors import AudioError, ConfigError
from earwise.files import write_json
from earwise.training.logging.trackers import (
    CLIP_RATE,
    CLIP_SECONDS,
    TRACKERS,
    LoggedSample,
    LogRow,
    TrackedStage,
    Tracker,
    group_metrics,
)
from earwise.types import Waveform

EXTRAS = {"wandb": "track", "trackio": "track"}
"""Tracker -> the extra of this package that installs it."""
SAMPLES_PER_STEP = 2
"""Number of prompts of a step that trackers show."""
MAX_FAILURES = 3
"""Consecutive failures after which a tracker is disabled."""

Notify = Callable[[str], None]


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be opened, before a run begins.

    Raises:
        ConfigError: if a name is unknown, its package is missing (with the command that installs it), or wandb would
            be online and nobody is logged in.
    """
    for name in names:
        if name in EXTRAS:
            require(name, EXTRAS[name], f"trackers: [{name}]")
        resolve_entry(TRACKERS, name, "tracker")
        if name == "wandb":
            _log_in_to_wandb()


def _log_in_to_wandb() -> None:
    """Log in as `wandb login` does, which asks for the key at a terminal, unless wandb is offline or disabled."""
    import wandb

    if wandb.setup().settings.mode not in ("offline", "dryrun", "disabled"):
        try:
            wandb.login()
        except wandb.Error as error:
            raise ConfigError(
                f"tracker wandb: nobody is logged in ({' '.join(str(error).split())[:100]}); run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error


class Tracking:
    """The trackers of one stage.

    Args:
        names: Names in `TRACKERS`, or `module:function`.
        run: Folder of the run.
        stage: Name of the stage's folder.
        settings: The recipe without its other stages; see `TrackedStage.settings`.
        notify: Receives a line where each tracker shows the run, and one for each tracker that fails.
    """

    def __init__(
        self, names: Sequence[str], run: Path, stage: str, settings: Mapping[str, Any], notify: Notify
    ) -> None:
        self._trackers = [_GuardedTracker(name, run, stage, settings, notify) for name in names]
        self._run = run
        self._sample_rows: list[LogRow] = []

    def log_sample(self, row: LogRow) -> None:
        """Hold a row of `rollouts.jsonl` until its step is logged; the first `SAMPLES_PER_STEP` of a step are shown."""
        self._sample_rows = [sample for sample in self._sample_rows if sample["step"] == row["step"]]
        if len(self._sample_rows) < SAMPLES_PER_STEP:
            self._sample_rows.append(row)

    def log_step(self, row: LogRow) -> None:
        """Send a row of `metrics.jsonl`, with the samples of its step, to every tracker."""
        sample_rows = [sample for sample in self._sample_rows if sample["step"] == row["step"]]
        self._sample_rows = []
        if self._trackers:
            metrics = group_metrics(row)
            samples = [LoggedSample(sample, self._waveforms(sample)) for sample in sample_rows]
            for tracker in self._trackers:
                tracker.log(row["step"], metrics, samples)

    def log_evaluation(self, row: LogRow) -> None:
        """Send the metrics of an evaluation after a step that was logged before."""
        for tracker in self._trackers:
            tracker.log(row["step"], group_metrics(row), [], adds_to_step=True)

    def close(self) -> None:
        """Finish the stage in every tracker, and report the steps that did not get there."""
        for tracker in self._trackers:
            tracker.close()

    def _waveforms(self, row: LogRow) -> list[Waveform]:
        """The beginning of each of a sample's clips that can be read."""
        waveforms = []
        for clip in clips_of_row(row, self._run):
            try:
                waveforms.append(decode(clip, CLIP_RATE, long_audio="truncate", max_s=CLIP_SECONDS))
            except AudioError:  # training reports unreadable clips; here the clip is only left out of the display
                continue
        return waveforms


@dataclass(slots=True)
class _GuardedTracker:
    """One tracker, opened at its first row. None of its errors reach the training run.

    Attributes:
        name: Name in `TRACKERS`, or `module:function`.
        run: Folder of the run.
        stage: Name of the stage's folder.
        settings: See `TrackedStage.settings`.
        notify: Receives lines for the user.
        tracker: The opened tracker; None before the first row.
        progress: The stage's `key`, and the last `step` that was sent, also by an earlier process.
        lost_steps: Number of steps that the tracker did not get.
        failures: Number of consecutive failures.
    """

    name: str
    run: Path
    stage: str
    settings: Mapping[str, Any]
    notify: Notify
    tracker: Tracker | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    lost_steps: int = 0
    failures: int = 0

    def log(
        self, step: int, metrics: Mapping[str, float], samples: Sequence[LoggedSample], *, adds_to_step: bool = False
    ) -> None:
        """Send one step, unless the tracker is disabled or already has it; or more metrics of the last step."""
        if self.failures >= MAX_FAILURES:
            self.lost_steps += 1
            return
        try:
            if self.tracker is None:
                self.tracker = self._open(step)
            if not self.tracker.discards_later_steps and not adds_to_step:
                if step <= self.progress["step"]:
                    return
                self.progress["step"] = step
                # Written before the step is sent: after a crash, a missing step is better than a repeated one.
                write_json(self._progress_file, self.progress)
            self.tracker.log(step, metrics, samples)
            self.failures = 0
        except Exception as error:  # files, servers and third-party code: whatever happens, training goes on
            self._count_failure(error)

    def close(self) -> None:
        """Close the tracker and report the steps that it lost."""
        try:
            if self.tracker is not None:
                self.tracker.close()
        except Exception as error:  # as in `log`
            self._count_failure(error)
        if self.lost_steps:
            self.notify(
                f"tracker {self.name}: {self.lost_steps} steps of {self.stage} are not shown; metrics.jsonl has them"
            )

    @property
    def _progress_file(self) -> Path:
        return self.run / self.stage / f".{self.name.replace(':', '.')}.json"

    def _open(self, step: int) -> Tracker:
        """Open the tracker at its first step, with the key of an earlier process if there was one."""
        try:
            self.progress = json.loads(self._progress_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.progress = {"key": os.urandom(6).hex(), "step": 0}
        self.failures = MAX_FAILURES - 1  # a tracker that cannot be opened is disabled at once
        make = resolve_entry(TRACKERS, self.name, "tracker")
        tracker: Tracker = make(TrackedStage(self.run, self.stage, step, self.settings, self.progress["key"]))
        self.notify(f"tracker {self.name}: {tracker}")
        return tracker

    def _count_failure(self, error: Exception) -> None:
        """Count a failure; report the first one, and the one that disables the tracker."""
        self.lost_steps, self.failures = self.lost_steps + 1, self.failures + 1
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if self.failures == MAX_FAILURES:
            self.notify(f"tracker {self.name} failed ({message}) and is given up; metrics.jsonl has everything")
        elif self.lost_steps == 1:
            self.notify(f"tracker {self.name} failed ({message}); training goes on, metrics.jsonl has everything")
