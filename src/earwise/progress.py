"""Progress of long work: how much is done, how fast, and how long the rest takes.

Lowest layer. Code that works through many items opens a `task`, or iterates over `track(...)`. Nothing is shown until
the command line calls `show`, so the library stays silent. On a terminal a bar is drawn with rich; elsewhere (a log
file, a batch job) a line is written every `LINE_EVERY_S` seconds, and short work writes none. All of it goes to stderr.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, TypeVar

T = TypeVar("T")
LINE_EVERY_S = 30.0
MIN_RATE_S = 1e-9


@dataclass(slots=True)
class Task:
    """Work on a number of items."""

    description: str
    """What is done, for example `attempts`."""
    total: int | None
    """Number of all items; None if it is not known."""
    done: int
    """Number of finished items."""
    started: float
    """Time at which this process began, in seconds of `clock`."""
    done_before: int = 0
    """Items that an earlier run had finished; they do not count in the rate."""
    detail: str = ""
    """A few words about the results so far, for example `12 right`."""
    _update: Callable[["Task"], None] = field(default=lambda task: None, repr=False)

    def advance(self, count: int = 1, detail: str | None = None) -> None:
        """Count finished items.

        Args:
            count: Number of items that were finished since the last call.
            detail: A few words about the results so far; None leaves them as they are.
        """
        self.done += count
        self.detail = self.detail if detail is None else detail
        self._update(self)


class Display(Protocol):
    """Where progress is shown."""

    def start(self, task: Task) -> None:
        """A task begins."""

    def update(self, task: Task) -> None:
        """Items of a task were finished."""

    def finish(self, task: Task) -> None:
        """A task ends, whether or not all its items are finished."""

    def write(self, line: str) -> None:
        """Write a line of its own, above what is drawn."""


def describe(task: Task, now: float) -> str:
    """One line about a task.

    Args:
        task: The task.
        now: Time in seconds of the clock that `task.started` was read from.

    >>> describe(Task("attempts", 100, 30, started=0.0, done_before=10, detail="12 right"), now=10.0)
    'attempts: 30 of 100, 2.0/s, 0:35 left, 12 right'
    >>> describe(Task("requests", None, 30, started=0.0), now=60.0)
    'requests: 30, 30/min'
    """
    rate = (task.done - task.done_before) / max(now - task.started, MIN_RATE_S)
    count = f"{task.done}" if task.total is None else f"{task.done} of {task.total}"
    parts = [f"{task.description}: {count}", describe_rate(rate)]
    if task.total is not None and rate > 0 and task.done < task.total:
        parts.append(f"{describe_seconds((task.total - task.done) / rate)} left")
    return ", ".join([*parts, task.detail] if task.detail else parts)


def describe_rate(rate: float) -> str:
    """A rate in items per second, or per minute if it is below one a second.

    >>> describe_rate(12.34), describe_rate(0.25)
    ('12.3/s', '15/min')
    """
    return f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.0f}/min"


def describe_seconds(seconds: float) -> str:
    """A duration as minutes and seconds, or hours, minutes and seconds.

    >>> describe_seconds(65.2), describe_seconds(7325)
    ('1:05', '2:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class SilentDisplay:
    """Shows nothing: the library's default. Lines of their own are written to stderr."""

    def start(self, task: Task) -> None:
        """Nothing."""

    def update(self, task: Task) -> None:
        """Nothing."""

    def finish(self, task: Task) -> None:
        """Nothing."""

    def write(self, line: str) -> None:
        """Write a line to stderr."""
        sys.stderr.write(f"{line}\n")


class LineDisplay:
    """Writes a line every `LINE_EVERY_S` seconds, and one at the end of a task that had any.

    Args:
        stream: Where lines are written to; None for whatever is stderr then.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last_lines: dict[int, float] = {}
        self._last_counts: dict[int, int] = {}

    def start(self, task: Task) -> None:
        """Begin to wait for the first line."""
        self._last_lines[id(task)] = task.started

    def update(self, task: Task) -> None:
        """Write a line if the last one is long ago."""
        now = self._clock()
        if now - self._last_lines[id(task)] >= LINE_EVERY_S:
            self._last_lines[id(task)], self._last_counts[id(task)] = now, task.done
            self.write(describe(task, now))

    def finish(self, task: Task) -> None:
        """Write a last line if the task had one before, unless that one was of its last item."""
        if self._last_lines.pop(id(task)) > task.started and self._last_counts.pop(id(task)) != task.done:
            self.write(describe(task, self._clock()))

    def write(self, line: str) -> None:
        """Write a line."""
        stream = self._stream or sys.stderr
        stream.write(f"{line}\n")
        stream.flush()


class TerminalDisplay:
    """Draws a bar for every task that is at work, with rich; it is wiped off when the task ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True), TextColumn("{task.fields[detail]}"),
        )  # fmt: skip
        self._bars: Any = Progress(*columns, console=self._console, transient=True)
        self._bar_ids: dict[int, Any] = {}

    def start(self, task: Task) -> None:
        """Draw the bar of a task."""
        if not self._bar_ids:
            self._bars.start()
        self._bar_ids[id(task)] = self._bars.add_task(
            task.description, total=task.total, completed=task.done, rate="", detail=""
        )

    def update(self, task: Task) -> None:
        """Move the bar of a task."""
        rate = (task.done - task.done_before) / max(time.monotonic() - task.started, MIN_RATE_S)
        self._bars.update(self._bar_ids[id(task)], completed=task.done, rate=describe_rate(rate), detail=task.detail)

    def finish(self, task: Task) -> None:
        """Wipe off the bar of a task."""
        self._bars.remove_task(self._bar_ids.pop(id(task)))
        if not self._bar_ids:
            self._bars.stop()

    def write(self, line: str) -> None:
        """Write a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


_display: Display = SilentDisplay()


def show(display: Display | None = None) -> None:
    """Show progress from now on.

    Args:
        display: Where to show it; None for a bar on a terminal, and lines anywhere else.
    """
    global _display
    _display = display or (TerminalDisplay() if sys.stderr.isatty() else LineDisplay())


def write_line(line: str) -> None:
    """Write a line to stderr, above the bars if there are any."""
    _display.write(line)


@contextmanager
def task(description: str, total: int | None = None, *, done: int = 0) -> Iterator[Task]:
    """Work on a number of items, of which the block counts the finished ones with `advance`.

    Args:
        description: What is done, in one or two words.
        total: Number of all items; None if it is not known.
        done: Items that an earlier run has finished.
    """
    display = _display
    opened = Task(description, total, done, time.monotonic(), done, _update=display.update)
    display.start(opened)
    try:
        yield opened
    finally:
        display.finish(opened)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items; each counts as finished when the next one is asked for.

    Args:
        items: The items.
        description: What is done, in one or two words.
        total: Number of items; None if it is not known.
    """
    with task(description, total) as opened:
        for item in items:
            yield item
            opened.advance()
