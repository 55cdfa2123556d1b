"""Where a training step spends its time: seconds per named phase.

The trainer, the stages and `EncoderCache` open phases around their parts. Phases nest, and a phase does not count the
time of the phases opened inside it: audio that is encoded while completions are sampled counts as `hear`, not as
`rollout`. The phases of a step therefore add up to the duration of the step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

PHASES = ("decode", "hear", "rollout", "reference", "forward", "backward", "optimizer")
"""Names in the log, in the order in which they are shown: reading audio files; the frozen encoder; sampling; forward
passes under the reference, the old policy and a teacher; connector, decoder and loss (and the encoder where it is
trained); their gradients; gradient clipping and update."""
OUTSIDE_PHASES = "rest"
"""Name in the log of the time outside all phases."""


class Profiler:
    """Measures the seconds of named phases, summed since the last call of `split`.

    Args:
        now: Returns a monotonic time in seconds.
        synchronize: Called before each reading of the time, so that work queued on a device is finished; see
            `profiler_for`.
    """

    def __init__(
        self, now: Callable[[], float] = time.perf_counter, synchronize: Callable[[], None] = lambda: None
    ) -> None:
        self._now = now
        self._synchronize = synchronize
        self._open_phases: list[str] = []
        self._seconds: dict[str, float] = {}
        self._last_reading = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the block as phase `name`, except for the phases opened inside it."""
        self._add_elapsed()
        self._open_phases.append(name)
        try:
            yield
        finally:
            self._add_elapsed()
            self._open_phases.pop()

    @property
    def current(self) -> str:
        """Name of the innermost open phase."""
        return self._open_phases[-1] if self._open_phases else OUTSIDE_PHASES

    def split(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, and start again from zero.

        Returns:
            The phases that took time: those of `PHASES` in that order, then other names, then `OUTSIDE_PHASES`.
        """
        self._add_elapsed()
        seconds, self._seconds = self._seconds, {}
        order = [*PHASES, *(name for name in seconds if name not in PHASES and name != OUTSIDE_PHASES), OUTSIDE_PHASES]
        return {name: seconds[name] for name in order if name in seconds}

    def _add_elapsed(self) -> None:
        """Add the time since the last reading to the innermost open phase."""
        self._synchronize()
        now = self._now()
        self._seconds[self.current] = self._seconds.get(self.current, 0.0) + now - self._last_reading
        self._last_reading = now


def profiler_for(device: torch.device) -> Profiler:
    """A profiler with exact phases on a device: on CUDA it waits for the queued work at each reading, which costs some
    overlap of host and device."""
    if device.type == "cuda":
        return Profiler(synchronize=partial(torch.cuda.synchronize, device))
    return Profiler()


def describe(split: dict[str, float], steps: int) -> str:
    """Describe the time of some steps in one line: seconds per step and share of each phase, the largest first.

    Args:
        split: Seconds of each phase, summed over the steps.
        steps: Number of steps.

    >>> describe({"hear": 3.0, "rollout": 1.0}, 2)
    '2.00 s a step: hear 1.50 s (75 %), rollout 0.50 s (25 %)'
    """
    total = sum(split.values())
    largest_first = sorted(split.items(), key=lambda item: -item[1])
    phases = ", ".join(f"{name} {value / steps:.2f} s ({value / total:.0%})" for name, value in largest_first if value)
    return f"{total / steps:.2f} s a step: {phases}".replace("%)", " %)")
