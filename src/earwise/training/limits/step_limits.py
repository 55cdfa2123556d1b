"""Some steps of a training run beside what the processor could do, for `earwise train --profile-step`.

The operators of the second and third step are recorded (the first one checks the model and packs weights; a rollout
may serve two steps), set against the machine's rates, and reported once: a line per phase, and `limits.json` in the
run's folder. Recording costs some microseconds per operator. Only on a CPU: on an accelerator, the time of an operator
cannot be read where it is started.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from earwise.files import write_json
from earwise.training.limits.operators import OperatorRecord
from earwise.training.limits.report import as_json, describe, measure_rates, phase_share
from earwise.training.profiler import OUTSIDE_PHASES, Profiler

RECORDED_STEPS = (2, 3)
"""Which steps of this process are recorded, counted from 1."""
MIN_SHARE = 0.01
"""Phases shorter than this share of the recorded time are left out."""


class StepLimits:
    """Records and reports some steps of a stage.

    Args:
        profiler: Measures the phases of a step.
        stage: Name of the stage's folder, the key in `limits.json`.
        path: The file to write.
        notify: Receives the lines.
    """

    def __init__(self, profiler: Profiler, stage: str, path: Path, notify: Callable[[str], None]) -> None:
        self._profiler, self._stage, self._path, self._notify = profiler, stage, path, notify
        self._record = OperatorRecord(lambda: profiler.current)
        self._seconds: dict[str, float] = {}
        self._count = 0
        self._is_reported = torch.cuda.is_available()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Record the step inside the block, if it is one of `RECORDED_STEPS`."""
        self._count += 1
        if self._is_reported or self._count not in RECORDED_STEPS:
            yield
            return
        with self._record:
            yield
        if self._count == RECORDED_STEPS[-1]:
            self.report()

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add the seconds of the phases of the step that has just ended."""
        if not self._is_reported and self._count in RECORDED_STEPS:
            for phase, value in seconds.items():
                self._seconds[phase] = self._seconds.get(phase, 0.0) + value

    def report(self) -> None:
        """Report what was recorded, unless that was done or nothing was."""
        if self._is_reported or not self._seconds:
            return
        self._is_reported = True
        total = sum(self._seconds.values())
        phases = self._record.phases
        dtypes = {product.dtype for operators in phases.values() for product in operators.products}
        rates = measure_rates(tuple(sorted(dtypes | {"float32"})))
        shares = {
            phase: phase_share(phases[phase], seconds, rates)
            for phase, seconds in self._seconds.items()
            if phase in phases and phase != OUTSIDE_PHASES and seconds >= MIN_SHARE * total
        }
        gflops = ", ".join(f"{dtype} {rate:.0f} GFLOP/s" for dtype, rate in rates.gflops.items())
        self._notify(f"limits of this machine: {gflops}, memory {rates.gigabytes:.0f} GB/s")
        for phase, share in shares.items():
            self._notify(describe(phase, share))
        known = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        write_json(self._path, known | {self._stage: as_json(rates, shares)})
