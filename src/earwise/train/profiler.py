"""Where a training step spends its time: named phases, each with the time that it did not spend in another.

Opened by the stages and the loop around their parts (and by `Ears` around the encoder). Phases nest: sound that is
heard while sampling counts as `hear`, not as `rollout`, so that the split adds up to the step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch

PHASES = ("decode", "hear", "rollout", "reference", "forward", "backward", "optimizer")
"""Reading sound files; the frozen encoder; sampling; log-probabilities under the reference (and the old policy);
connector, decoder and loss (and the encoder where it trains); their gradients; clipping and update."""
REST = "rest"


class Clock:
    """Seconds of named phases, added up since the last `split`.

    Args:
        now: Seconds; monotonic.
        settle: Called before every reading, so that work already handed to a device is done (`settled_on`).
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, settle: Callable[[], None] = lambda: None) -> None:
        self._now = now
        self._settle = settle
        self._open: list[str] = []
        self._seconds: dict[str, float] = {}
        self._since = self._now()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what happens inside as `phase`, but for the phases opened therein."""
        self._turn()
        self._open.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def phase(self, name: str) -> Callable[[], AbstractContextManager[None]]:
        """`clock(name)` for those who open it later and need not know of clocks."""
        return partial(self, name)

    def split(self) -> dict[str, float]:
        """Seconds of each phase since the last call, in the order of `PHASES`, then what else was named, then `rest`,
        time in no phase at all. Starts anew."""
        self._turn()
        seconds, self._seconds = self._seconds, {}
        order = [*PHASES, *(name for name in seconds if name not in PHASES and name != REST), REST]
        return {name: seconds[name] for name in order if name in seconds}

    def _turn(self) -> None:
        """Give the time since the last reading to the phase that is open."""
        self._settle()
        now = self._now()
        phase = self._open[-1] if self._open else REST
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now


def settled_on(device: torch.device) -> Clock:
    """A clock that waits for a CUDA device at every reading: exact phases, at the price of some overlap."""
    if device.type == "cuda":
        return Clock(settle=partial(torch.cuda.synchronize, device))
    return Clock()


def describe(split: dict[str, float], steps: int) -> str:
    """One line: seconds per step and the share of each phase, the largest first.

    >>> describe({"hear": 3.0, "rollout": 1.0}, 2)
    '2.00 s a step: hear 1.50 s (75 %), rollout 0.50 s (25 %)'
    """
    whole = sum(split.values())
    parts = sorted(split.items(), key=lambda item: -item[1])
    told = ", ".join(f"{name} {value / steps:.2f} s ({value / whole:.0%})" for name, value in parts if value > 0)
    return f"{whole / steps:.2f} s a step: {told}".replace("%)", " %)")
