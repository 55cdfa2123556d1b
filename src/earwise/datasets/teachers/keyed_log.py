"""An append-only log of finished work, keyed by content, so that an interrupted build continues where it stopped.

Below `request_runner.py` (answers of a teacher), `audio_queries.py` (answers of an audio model) and
`xs_cot/synthesis.py` (clips). A log is a folder of JSON lines files, one per writing process: `rows.jsonl`, or
`rows-3-of-8.jsonl` for a shard. All files of the folder are read as one log. Each row is written by a single call and
is found again by its `key`, a hash of everything that decides the row; running the same command again therefore does
only the work that is missing. Memory holds the key and the position of every row; the rows stay on disk.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from earwise.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows, where two processes that write to one log are not noticed
    fcntl = None  # type: ignore[assignment]

LogRow = dict[str, Any]
Shard = tuple[int, int]
"""Number of the shard, from 1, and the number of shards."""
UNSHARDED: Shard = (1, 1)
TAIL_BYTES = 1 << 16  # read at a time when the end of the last whole line is searched for


def content_key(value: object) -> str:
    """SHA-256 of a JSON value, as 64 hexadecimal digits; the order of the keys of its objects does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_shard(text: str | None) -> Shard:
    """Parse a shard written as `i/n`, counted from 1; None is the whole work.

    Raises:
        ConfigError: if the text is not of that form.

    Example:
        >>> parse_shard("3/8"), parse_shard(None)
        ((3, 8), (1, 1))
    """
    if text is None:
        return UNSHARDED
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"shard {text!r} is not i/n with 1 <= i <= n; write 1/8 on the first of 8 machines")
    return int(number), int(count)


def in_shard(key: str, shard: Shard) -> bool:
    """Whether a hexadecimal key belongs to a shard; every key belongs to exactly one shard."""
    return int(key[:16], 16) % shard[1] == shard[0] - 1


class KeyedLog:
    """A log of rows that are found by key.

    Args:
        folder: Folder of the log; created if it does not exist, unless the log is only read.
        shard: Shard of this process, which names the file that it writes.
        read_only: Whether to read only: no file is created, repaired or locked.
    Raises:
        DataError: if another process is writing the same file, or the file cannot be written.
    """

    def __init__(self, folder: Path, shard: Shard = UNSHARDED, *, read_only: bool = False) -> None:
        self.folder = folder
        self.path = folder / ("rows.jsonl" if shard == UNSHARDED else f"rows-{shard[0]}-of-{shard[1]}.jsonl")
        """File that this process writes."""
        self.damaged = 0
        """Number of lines that are not a JSON object with a key; their work is done again."""
        self.healed_bytes = 0
        """Length of the half-written last line that was cut off when the log was opened."""
        self._locations: dict[bytes, tuple[int, int, bool]] = {}  # key -> file number, offset, whether status is "ok"
        self._files: list[Path] = []
        self._readers: dict[int, BinaryIO] = {}
        self._writer: BinaryIO | None = None
        if not read_only:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._writer = self.path.open("ab", buffering=0)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be written ({error.strerror}); choose another folder") from error
            self._lock(self._writer)
            self._cut_partial_line()
        for path in sorted(folder.glob("rows*.jsonl")):
            self._index_file(path)

    def __enter__(self) -> "KeyedLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._locations)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._locations

    def is_ok(self, key: str) -> bool:
        """Whether there is a row with this key whose `status` is "ok"."""
        location = self._locations.get(bytes.fromhex(key))
        return location is not None and location[2]

    def get(self, key: str) -> LogRow | None:
        """Read the row of a key: the last one that is ok, else the last one; None if there is none."""
        location = self._locations.get(bytes.fromhex(key))
        return None if location is None else self._read_row(location[0], location[1])

    def rows(self) -> Iterator[LogRow]:
        """The row of every key, in the order in which the keys were first logged."""
        for file_number, offset, _ in list(self._locations.values()):
            yield self._read_row(file_number, offset)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row under its `key`. Once this returns, the row survives the death of the process.

        Raises:
            DataError: if the disk is full or the file cannot be written; no part of the row is left in the file.
        """
        if self._writer is None:
            raise DataError(f"{self.path}: the log was opened for reading only")
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        offset = os.fstat(self._writer.fileno()).st_size
        try:
            if self._writer.write(line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._writer.truncate(offset)
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space, then run the same "
                "command again: it continues from here"
            ) from error
        self._index_row(row, self._file_number(self.path), offset)

    def close(self) -> None:
        """Flush the written file to the disk and close all files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._writer.fileno())
            self._writer.close()
            self._writer = None

    def _lock(self, handle: BinaryIO) -> None:
        """Keep other processes from writing the same file."""
        if fcntl is None:
            return
        try:
            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise DataError(
                f"{self.path}: another run is writing it; wait for it, or divide the work with --shard i/n"
            ) from error
        except OSError:  # a file system without locks
            return

    def _cut_partial_line(self) -> None:
        """Cut off the partial last line that is left when a process is killed during a write."""
        with self.path.open("r+b") as handle:
            end = handle.seek(0, os.SEEK_END)
            start = end
            tail = b""
            while start and b"\n" not in tail:
                step = min(start, TAIL_BYTES)
                start -= step
                handle.seek(start)
                tail = handle.read(step)
            end_of_lines = start + tail.rfind(b"\n") + 1
            if end_of_lines != end:
                handle.truncate(end_of_lines)
                self.healed_bytes = end - end_of_lines

    def _index_file(self, path: Path) -> None:
        """Note the position of every row of a file."""
        file_number, offset = self._file_number(path), 0
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):  # another process may be in the middle of writing its last line
                    try:
                        self._index_row(json.loads(line), file_number, offset)
                    except (ValueError, KeyError, TypeError):
                        self.damaged += 1
                offset += len(line)

    def _file_number(self, path: Path) -> int:
        """Number of a file among the files of the log."""
        if path not in self._files:
            self._files.append(path)
        return self._files.index(path)

    def _index_row(self, row: Mapping[str, Any], file_number: int, offset: int) -> None:
        """Note the position of a row, unless an ok row with its key is known and this one is not ok."""
        key, is_ok = bytes.fromhex(row["key"]), row.get("status", "ok") == "ok"
        location = self._locations.get(key)
        if location is None or is_ok or not location[2]:
            self._locations[key] = (file_number, offset, is_ok)

    def _read_row(self, file_number: int, offset: int) -> LogRow:
        """Read the row at a position."""
        if file_number not in self._readers:
            self._readers[file_number] = self._files[file_number].open("rb")
        reader = self._readers[file_number]
        reader.seek(offset)
        row: LogRow = json.loads(reader.readline())
        return row
