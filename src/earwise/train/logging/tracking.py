"""The logs of a stage, mirrored in trackers that people watch while it runs.

`metrics.jsonl` and `rollouts.jsonl` stay the truth: `train/run.py` writes a row there first and hands it on here. A
tracker that fails is told of once and counted, and given up where it goes on failing; training goes on. A resumed stage
says no step twice: TensorBoard drops what came after the checkpoint; the others cannot take anything back, so that the
last step that they were given is kept beside the stage, and steps up to it (the same values, where the run is exact)
are not given again.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earwise.audio import decode
from earwise.config.resolve import require, resolve_entry
from earwise.errors import AudioError, ConfigError
from earwise.files import write_json
from earwise.train.logging.trackers import LISTEN_RATE, LISTEN_S, TRACKERS, Row, Sample, Tracker, Watched, grouped
from earwise.types import Waveform

EXTRAS = {"tensorboard": "train", "wandb": "track", "trackio": "track"}
SAMPLES = 2  # prompts of a step that are shown
PATIENCE = 3  # failures in a row after which a tracker is given up

Notify = Callable[[str], None]


def check(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be opened, before a run begins.

    Raises:
        ConfigError: if a name is unknown, its package is missing (with the command that installs it), or wandb is to
            be online and nobody is logged in.
    """
    for name in names:
        if name in EXTRAS:
            require(name, EXTRAS[name], f"trackers: [{name}]")
        resolve_entry(TRACKERS, name, "tracker")
        if name == "wandb":
            _log_in()


def _log_in() -> None:
    """As `wandb login`, which asks for the key at a terminal, unless wandb is offline or disabled."""
    import wandb

    if wandb.setup().settings.mode not in ("offline", "dryrun", "disabled"):
        try:
            wandb.login()
        except wandb.Error as error:
            raise ConfigError(
                f"tracker wandb: nobody is logged in ({' '.join(str(error).split())[:100]}); `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error


class Mirror:
    """The trackers of a stage.

    Args:
        names: Of `TRACKERS`, or `module:function`.
        run: Folder of the run.
        stage: Name of the stage's folder.
        settings: As `Watched.settings`.
        say: Told where a tracker shows the run, and of each that fails.
    """

    def __init__(
        self, names: Sequence[str], run: Path, stage: str, settings: Mapping[str, Any], notify: Notify
    ) -> None:
        self._guards = [_Guard(name, run, stage, settings, notify) for name in names]
        self._run = run
        self._rows: list[Row] = []

    def sample(self, row: Row) -> None:
        """Keep a row of `rollouts.jsonl` until its step is logged; the first `SAMPLES` of a step are shown."""
        self._rows = [kept for kept in self._rows if kept["step"] == row["step"]]
        if len(self._rows) < SAMPLES:
            self._rows.append(row)

    def step(self, row: Row) -> None:
        """Hand on a row of `metrics.jsonl`, with the samples of its step."""
        rows, self._rows = [kept for kept in self._rows if kept["step"] == row["step"]], []
        if self._guards:
            values, samples = grouped(row), [Sample(kept, self._waves(kept)) for kept in rows]
            for guard in self._guards:
                guard.log(row["step"], values, samples)

    def close(self) -> None:
        """End the stage in every tracker, and say what did not get there."""
        for guard in self._guards:
            guard.close()

    def _waves(self, row: Row) -> list[Waveform]:
        """The beginning of each clip that can be read."""
        waveforms = []
        for clip in row["audio"]:
            try:
                waveforms.append(decode(self._run / clip, LISTEN_RATE, long_audio="truncate", max_s=LISTEN_S))
            except AudioError:  # training says so, where it matters
                continue
        return waveforms


@dataclass(slots=True)
class _Guard:
    """One tracker, opened at its first row; nothing that goes wrong in it comes through."""

    name: str
    run: Path
    stage: str
    settings: Mapping[str, Any]
    notify: Notify
    tracker: Tracker | None = None
    given: dict[str, Any] = field(default_factory=dict)
    """`key` of the stage, and the last `step` that the tracker was given, in an earlier process too."""
    lost: int = 0
    in_a_row: int = 0

    def log(self, step: int, values: Mapping[str, float], samples: Sequence[Sample]) -> None:
        if self.in_a_row >= PATIENCE:
            self.lost += 1
            return
        try:
            if self.tracker is None:
                self.tracker = self._opened(step)
            if not self.tracker.takes_back:
                if step <= self.given["step"]:
                    return
                self.given["step"] = step
                write_json(self._kept, self.given)  # before the tracker has it: rather a gap than a step twice
            self.tracker.log(step, values, samples)
            self.in_a_row = 0
        except Exception as error:  # files, servers and other people's code: whatever it is, training goes on
            self._failed(error)

    def close(self) -> None:
        try:
            if self.tracker is not None:
                self.tracker.close()
        except Exception as error:  # as above
            self._failed(error)
        if self.lost:
            self.notify(f"tracker {self.name}: {self.lost} steps of {self.stage} are not shown; metrics.jsonl has them")

    @property
    def _kept(self) -> Path:
        return self.run / self.stage / f".{self.name.replace(':', '.')}.json"

    def _opened(self, step: int) -> Tracker:
        try:
            self.given = json.loads(self._kept.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.given = {"key": os.urandom(6).hex(), "step": 0}
        self.in_a_row = PATIENCE - 1  # one that cannot be opened is not tried again
        make = resolve_entry(TRACKERS, self.name, "tracker")
        tracker: Tracker = make(Watched(self.run, self.stage, step, self.settings, self.given["key"]))
        self.notify(f"tracker {self.name}: {tracker}")
        return tracker

    def _failed(self, error: Exception) -> None:
        self.lost, self.in_a_row = self.lost + 1, self.in_a_row + 1
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if self.in_a_row == PATIENCE:
            self.notify(f"tracker {self.name} failed ({said}) and is given up; metrics.jsonl has everything")
        elif self.lost == 1:
            self.notify(f"tracker {self.name} failed ({said}); training goes on, metrics.jsonl has everything")
