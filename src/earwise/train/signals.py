"""Ctrl-C (or a cluster's SIGTERM) ends a run after the step it is in, so that nothing finished is lost."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Stop:
    """While entered, the first SIGINT or SIGTERM sets `asked`; the second interrupts at once.

    Signals reach the main thread only; elsewhere this does nothing and Python's own handling stands.

    Args:
        say: Told what will happen when the first signal comes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping: this step is finished and saved first (again: stop at once)")
