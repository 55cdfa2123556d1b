"""Log of the rows of a published file that cannot be used: one line each, in a text file beside the manifest."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

MAX_NOTIFIED = 3  # skipped rows that are also reported as progress


class SkipLog:
    """Callback for skipped rows that writes them to `MANIFEST.skipped.txt` and counts them.

    Used as a context manager; the file is only created if a row is skipped.

    Args:
        manifest: Manifest that is written.
        notify: Callback that receives the first skipped rows, and at the end their number.
    """

    def __init__(self, manifest: Path, notify: Callable[[str], None] = lambda _: None) -> None:
        self.path = manifest.with_name(f"{manifest.name}.skipped.txt")
        self.count = 0
        """Number of skipped rows."""
        self.first = ""
        """Line about the first skipped row."""
        self._notify = notify
        self._file: IO[str] | None = None

    def __enter__(self) -> "SkipLog":
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self.count > MAX_NOTIFIED:
            self._notify(f"left out {self.count} rows in all, listed in {self.path}")

    def __call__(self, line: str) -> None:
        """Log one row; `line` names file, row and reason."""
        self.count += 1
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self.first = self.path.open("w", encoding="utf-8"), line
        self._file.write(line + "\n")
        if self.count <= MAX_NOTIFIED:
            self._notify(f"left out: {line}")
