"""Progress of long work: bars on a terminal, a line now and then elsewhere, and nothing from the library."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest

from earwise import progress
from earwise.progress import LineDisplay, SilentDisplay


@pytest.fixture(autouse=True)
def silent_afterwards() -> Iterator[None]:
    yield
    progress.show(SilentDisplay())


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self, start: float) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now


def test_a_line_every_thirty_seconds_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(1000.0), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    progress.show(LineDisplay(stream, clock))
    with progress.task("attempts", 100, done=20) as task:
        for _ in range(80):
            clock.now += 1.0
            task.advance(detail="9 right")
    assert stream.getvalue().splitlines() == [
        "attempts: 50 of 100, 1.0/s, 0:50 left, 9 right",
        "attempts: 80 of 100, 1.0/s, 0:20 left, 9 right",
        "attempts: 100 of 100, 1.0/s, 9 right",
    ]


def test_the_line_of_the_last_item_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(1000.0), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    progress.show(LineDisplay(stream, clock))
    with progress.task("attempts", 1) as task:
        clock.now += 60.0
        task.advance()
    assert stream.getvalue().splitlines() == ["attempts: 1 of 1, 1/min"]


def test_short_work_writes_nothing_even_if_it_fails() -> None:
    stream = io.StringIO()
    progress.show(LineDisplay(stream))
    assert list(progress.track(iter("abc"), "letters")) == ["a", "b", "c"]
    with pytest.raises(ValueError), progress.task("letters", 3) as task:
        task.advance()
        raise ValueError
    assert stream.getvalue() == ""


def test_the_library_alone_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    progress.show(SilentDisplay())
    assert list(progress.track([1, 2], "numbers", 2)) == [1, 2]
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import sys, time
from earwise import progress
progress.show()
with progress.task("attempts", 4) as task:
    for number in range(4):
        time.sleep(0.15)
        task.advance(detail=f"{number} right")
        if number == 1:
            progress.write_line("[a] note")
print("result")
"""


def test_a_terminal_gets_bars_on_stderr_and_stdout_stays_pure() -> None:
    main, side = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=side, env=environment, text=True
    ) as process:
        os.close(side)
        drawn = b""
        while True:
            try:
                piece = os.read(main, 4096)
            except OSError:  # the process has closed the terminal
                break
            if not piece:
                break
            drawn += piece
        stdout, _ = process.communicate()
    os.close(main)
    assert stdout == "result\n"
    text = drawn.decode()
    assert "attempts" in text and "2/4" in text and "/s" in text and "[a] note" in text
    quiet = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == ("result\n", "[a] note\n")
