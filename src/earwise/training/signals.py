"""Stopping a run: Ctrl-C, or the SIGTERM of a cluster, ends it after the running step, so that no step is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import torch


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `requested`; the second one interrupts at once.

    Python delivers signals to the main thread only. In other threads this object does nothing, and Python's own signal
    handling applies.

    Args:
        notify: Receives one line when the first signal arrives.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self.requested = False
        self._notify = notify
        self._is_immediate = False
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """While entered, the first signal interrupts at once: for work that can be repeated, so that a cluster which
        kills a job soon after its signal takes no finished step. With several processes, which must end their common
        work together, this does nothing."""
        self._is_immediate = not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1)
        try:
            yield
        finally:
            self._is_immediate = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self._is_immediate:
            raise KeyboardInterrupt
        self.requested = True
        self._notify("stopping: this step is finished and saved first (press again to stop at once)")


@contextmanager
def before_error(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` before any error or interrupt inside the block goes on."""
    try:
        yield
    except BaseException:
        action()
        raise
