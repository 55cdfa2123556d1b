"""Writing files so that a crash, a full disk or Ctrl-C never leaves half of one.

Lowest layer; every effect on disk goes through here: a whole file or folder is written beside its target and renamed to
it, a log only grows by whole lines and its torn last line, if a kill left one, is cut off when it is opened again.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import platformdirs

from earwise.errors import ConfigError, DataError

# What a disk, not we, is to blame for; safetensors says the same in words, "(os error 28)".
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def home() -> Path:
    """The cache folder: `EARWISE_HOME`, or the platform's user cache."""
    return Path(os.environ.get("EARWISE_HOME") or platformdirs.user_cache_dir("earwise"))


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it over `path` if the block ends without an error, else delete it.

    Raises:
        DataError: if the disk refuses (full, read-only), or a folder of the path is a file; naming the path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{path}: its folder is a file, or in one ({error.filename}); choose another name") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `folder`; it gets that name, all of it on the disk, if the block ends without an
    error, else it is deleted. `folder` must not exist; what a kill left of an earlier try is deleted first.

    Raises:
        DataError: if the disk refuses, naming the folder.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        part.rename(folder)
    except Exception as error:
        if (refused := disk_refused(error, folder)) is None:
            raise
        raise DataError(refused) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that grows, such as a run's; within one process it may be opened again. A
    process that is killed leaves it open.

    Raises:
        ConfigError: if another process is in it.
        DataError: if the disk refuses.
    """
    from filelock import FileLock, Timeout  # takes longer to import than the rest of this file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0, is_singleton=True, thread_local=False)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another process is at work in this folder; wait for it to end, or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        if (refused := disk_refused(error, folder)) is None:
            raise
        raise DataError(refused) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def disk_refused(error: BaseException, path: Path | None = None) -> str | None:
    """One line for an error that a full or read-only disk raised, whichever library noticed it; None for any other.

    Args:
        error: What was raised.
        path: What was being written; None takes the error's word.

    >>> disk_refused(OSError(28, "No space left on device", "a.bin"))
    'a.bin: cannot be written (No space left on device); free some space or choose another folder'
    """
    number = error.errno if isinstance(error, OSError) else None
    if number not in DISK_ERRORS:
        number = next((one for one in DISK_ERRORS if f"(os error {one})" in str(error)), None)
    if number is None:
        return None
    name = path or (error.filename if isinstance(error, OSError) else None) or "a file"
    return f"{name}: cannot be written ({os.strerror(number)}); free some space or choose another folder"


def seen_from(path: Path, folder: Path) -> str:
    """A path as seen from a folder, so that a project that moves as a whole keeps its clips."""
    try:
        return os.path.relpath(path.absolute(), folder.absolute())
    except ValueError:  # another drive on Windows
        return str(path.absolute())


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    with replacing(path) as handle:
        handle.write(text)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; NaN is refused, since no other reader takes it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write a whole JSONL file atomically; returns the number of rows."""
    count = 0
    with replacing(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def append_jsonl(path: Path, row: object) -> None:
    """Append one row to a log and flush it to the operating system."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read back an append-only log; a torn last line (a kill in the middle of a write) is cut off the file.

    Raises:
        DataError: if a line before the last is not JSON.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); delete the line or start a new folder") from error
    return rows
