"""The rows of an evaluation that one process or several write: one writer a file, and every item once.

A single process appends to `samples.jsonl` and holds the folder's lock. Several processes append to a file each,
`parts/2-of-4/samples.jsonl`, under a lock each; they hold the folder's own lock only for the moments in which they
start and end. The one that finds all items answered merges the parts into `samples.jsonl`. Whatever a killed process
has left is read by those that come after it, in whatever number. A row that stands twice (a kill between merging and
deleting) counts once.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from earwise.errors import ConfigError, DataError
from earwise.evaluation.processes.parts import Part
from earwise.evaluation.results import SAMPLES, SETTINGS, EvalSettings, ItemContents, Row, resume
from earwise.files import append_jsonl, is_locked, lock_folder, write_jsonl

PARTS = "parts"
MOMENT_S = 60.0
"""How long a process waits for another that is starting or ending in the same folder, in seconds."""


@dataclass(frozen=True, slots=True)
class RowLog:
    """Where a process writes its rows, and what is finished already."""

    path: Path
    """File that only this process writes."""
    rows: list[Row]
    """Finished rows of all processes; `append` adds to them."""

    def append(self, row: Row) -> None:
        """Add a row and write it."""
        self.rows.append(row)
        append_jsonl(self.path, row)


@contextmanager
def open_log(out: Path, settings: EvalSettings, contents: ItemContents, part: Part) -> Iterator[RowLog]:
    """Open the folder of a run for one process.

    Args:
        out: Folder of the run.
        settings: Settings of the run.
        contents: What the items of the run ask, see `results.resume`.
        part: The process.
    Yields:
        The log, with the rows that are finished already.
    Raises:
        ConfigError: if another process is at work on the same part or with another number of parts, or the folder holds
            rows that were made with other settings.
        DataError: if a row is not JSON, or the disk refuses.
    """
    if part.is_whole:
        with lock_folder(out):
            if others := live_parts(out):
                raise ConfigError(
                    f"{out}: {len(others)} other processes are at work in this folder ({', '.join(others)}); wait for "
                    "them to end, or choose another folder"
                )
            absorb_parts(out)
            yield RowLog(out / SAMPLES, resume(out, settings, contents))
        return
    folder = out / PARTS / part.name
    with lock_folder(out, wait_s=MOMENT_S):
        others = live_parts(out)
        if strangers := [name for name in others if not name.endswith(f"-of-{part.count}")]:
            raise ConfigError(
                f"{out}: a process is at work as part {strangers[0]}, this one is {part.name}; start all processes "
                "with the same number of parts"
            )
        lock = lock_folder(folder)
        lock.__enter__()
        if others:
            rows = _shared_rows(out, settings)
        else:
            absorb_parts(out, keep=folder)
            rows = resume(out, settings, contents)
    try:
        yield RowLog(folder / SAMPLES, rows)
    finally:
        lock.__exit__(None, None, None)


def all_rows(out: Path) -> list[Row]:
    """The finished rows of all processes, each item once; files that other processes are writing are left as they
    are."""
    rows: dict[tuple[str, int], Row] = {}
    for path in (out / SAMPLES, *sorted((out / PARTS).glob(f"*/{SAMPLES}"))):
        for row in _complete_lines(path):
            rows.setdefault((row["id"], row["permutation"]), row)
    return list(rows.values())


def merge(out: Path, rows: Sequence[Row]) -> None:
    """Write all rows into `samples.jsonl` and delete the parts; the folder's lock must be held."""
    write_jsonl(out / SAMPLES, rows)
    shutil.rmtree(out / PARTS, ignore_errors=True)


def absorb_parts(out: Path, keep: Path | None = None) -> None:
    """Merge what processes that have ended left in parts; the folder's lock must be held, and no part be at work.

    Args:
        out: Folder of the run.
        keep: Folder of a part that is about to begin: its rows are merged too, and the folder stays.
    """
    folders = [path for path in (out / PARTS).glob("*") if path.is_dir()]
    if any((path / SAMPLES).exists() for path in folders):
        write_jsonl(out / SAMPLES, all_rows(out))
    for path in folders:
        if path == keep:
            (path / SAMPLES).unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def live_parts(out: Path) -> list[str]:
    """Names of the parts that a process is at work on."""
    return sorted(path.name for path in (out / PARTS).glob("*") if path.is_dir() and is_locked(path))


def _shared_rows(out: Path, settings: EvalSettings) -> list[Row]:
    """The finished rows of processes that are at work, which must have the same settings.

    Raises:
        ConfigError: if they have others.
    """
    try:
        theirs = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out / SETTINGS}: cannot be read ({error}); stop the processes and start anew") from error
    ours = json.loads(json.dumps(settings))
    if theirs != ours:
        names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        raise ConfigError(
            f"{out}: other processes are at work here with other settings ({', '.join(names)}); start all with the "
            "same command"
        )
    return all_rows(out)


def _complete_lines(path: Path) -> list[Row]:
    """The rows of a log up to its last line end, without a change to the file.

    Raises:
        DataError: if a line is not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); delete the line or start a new folder") from error
    return rows
