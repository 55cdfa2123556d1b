"""Writes files so that a crash, a full disk or Ctrl-C never leaves half of one.

Lowest layer; everything that earwise writes goes through here. Whole files and folders are written beside their target
and then renamed to it. A log only grows by whole lines; when it is opened again after a kill in the middle of a write,
the incomplete last line is cut off.
"""

import errno
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import platformdirs

from earwise.errors import ConfigError, DataError

# Error numbers that the disk causes and not earwise. safetensors reports the same as text: "(os error 28)".
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def cache_dir() -> Path:
    """Folder of cached weights, indexes and logs: `EARWISE_HOME`, or the user cache folder of the platform."""
    return Path(os.environ.get("EARWISE_HOME") or platformdirs.user_cache_dir("earwise"))


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path` that no other process, thread or machine uses.

    It ends in `.part` and holds the machine and the process, so that `remove_abandoned` can tell what a killed process
    has left.
    """
    return path.with_name(f".{path.name[:100]}.{platform.node()[:40]}.{os.getpid()}.{secrets.token_hex(4)}.part")


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files and folders in `folder` whose process, on this machine, has ended."""
    if os.name != "posix":  # elsewhere a process cannot be looked up without harm
        return
    with suppress(OSError):
        for path in folder.glob(".*.part"):
            machine, _, process = path.name.removesuffix(".part").rpartition(".")[0].rpartition(".")
            if machine.endswith(f".{platform.node()[:40]}") and process.isdecimal() and not _is_running(int(process)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, and rename it to `path` if the block ends without an error.

    Args:
        path: File to write; its folder is created where it is missing.
        mode: `w` for UTF-8 text, `wb` for bytes.
    Yields:
        The open temporary file. It is deleted if the block raises.
    Raises:
        DataError: if the disk is full or read-only, or a folder of the path is a file; the message names the path.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(
            f"{path}: its folder is a file, or lies in one ({error.filename}); choose another name"
        ) from error
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 40) : error.end + 20]
        raise DataError(
            f"{path}: cannot be written, {text!r} is no UTF-8 text (a file name of another encoding?); rename the file"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `folder`, and rename it to `folder` if the block ends without an error.

    Args:
        folder: Folder to create; it must not exist. Temporary files and folders beside it that killed processes left
            are deleted first.
    Yields:
        The temporary folder. Its files are flushed to the disk before the rename; it is deleted if the block raises.
    Raises:
        DataError: if the disk is full or read-only; the message names the folder.
    """
    part = temporary_path(folder)
    try:
        remove_abandoned(folder.parent)
        part.mkdir(parents=True)
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        part.rename(folder)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DataError(f"{folder}: already exists, another process wrote it; choose another folder") from error
        if (message := disk_error_message(error, folder)) is None:
            raise
        raise DataError(message) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes out of a folder that grows, such as that of a run.

    The same process may lock the folder again. The operating system releases the lock of a killed process.

    Args:
        folder: Folder to lock; created where it is missing.
        wait_s: How long to wait for another process to release the lock, in seconds.
    Raises:
        ConfigError: if another process holds the lock.
        DataError: if the disk is full or read-only.
    """
    from filelock import FileLock, Timeout  # takes longer to import than the rest of this file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0, is_singleton=True, thread_local=False)
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another process is at work in this folder; wait for it to end, or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        if (message := disk_error_message(error, folder)) is None:
            raise
        raise DataError(message) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process, this one or another, works in a folder that it has locked with `lock_folder`.

    The lock is tried for a moment; a process that asks for it within that moment is refused.
    """
    from filelock import FileLock, Timeout

    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


def disk_error_message(error: BaseException, path: Path | None = None) -> str | None:
    """One line about an error that a full or read-only disk caused, whichever library raised it.

    Args:
        error: The exception.
        path: The file or folder that was being written; None takes the file name in the exception.
    Returns:
        The line, or None if the disk did not cause the error.

    >>> disk_error_message(OSError(28, "No space left on device", "a.bin"))
    'a.bin: cannot be written (No space left on device); free some space or choose another folder'
    """
    number = error.errno if isinstance(error, OSError) else None
    if number not in DISK_ERRORS:
        number = next((code for code in DISK_ERRORS if f"(os error {code})" in str(error)), None)
    if number is None and isinstance(error, RuntimeError) and "inline_container.cc" in str(error):
        number = errno.ENOSPC  # torch.save: the archive that it writes has become shorter than what it wrote
    if number is None:
        return None
    name = path or (error.filename if isinstance(error, OSError) else None) or "a file"
    return f"{name}: cannot be written ({os.strerror(number)}); free some space or choose another folder"


def expand_home(text: str) -> str:
    """A text that may be a path, with `~` or `~user` at its beginning replaced by that home folder, if there is one.

    >>> expand_home("starter:val"), expand_home("https://host//a"), expand_home("~nobody-of-this-name/a")
    ('starter:val', 'https://host//a', '~nobody-of-this-name/a')
    """
    if not text.startswith("~"):
        return text
    with suppress(RuntimeError):  # no such user, or no home
        return str(Path(text).expanduser())
    return text


def relative_path(path: Path, folder: Path) -> str:
    """A path relative to a folder, so that a project may be moved as a whole; absolute where that is impossible."""
    try:
        return os.path.relpath(path.absolute(), folder.absolute())
    except ValueError:  # another drive on Windows
        return str(path.absolute())


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic_write(path) as handle:
        handle.write(text)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically. NaN is refused, because most JSON readers do."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write a whole JSONL file atomically; returns the number of rows."""
    count = 0
    with atomic_write(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def append_jsonl(path: Path, row: object, *, private: bool = False) -> None:
    """Append one row to a log and flush it to the operating system.

    Args:
        path: The log; it and its folder are created where they are missing.
        row: The row.
        private: Only the owner may read the log, also if others could read it until now.
    """

    def open_private(name: str, flags: int) -> int:
        descriptor = os.open(name, flags, 0o600)
        os.fchmod(descriptor, 0o600)
        return descriptor

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", opener=open_private if private else None) as handle:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read an append-only JSONL log; an incomplete last line (a kill in the middle of a write) is cut off the file.

    Raises:
        DataError: if a line before the last is not JSON.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) != len(data):
        with path.open("r+b") as handle:
            handle.truncate(len(complete))
    rows = []
    for number, line in enumerate(complete.split(b"\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); delete the line or start a new folder") from error
    return rows
