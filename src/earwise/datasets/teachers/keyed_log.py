"""An append-only log of finished work, keyed by content: what a kill, a full disk or a second machine cannot hurt.

Below `build/llm.py` (answers of a teacher) and `build/difficulty.py` (attempts of a policy). A folder holds one file of
JSON lines a writer: `rows.jsonl`, or `rows-3-of-8.jsonl` for a shard; all of them are read as one. A row is written by
one call, whole, and is found again by its `key`, so that the same command again does only what is missing. In memory
stands a key and a place a row; the rows stay on disk.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from earwise.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows: two runs on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]
Shard = tuple[int, int]
WHOLE: Shard = (1, 1)


def parse_shard(text: str | None) -> Shard:
    """`i/n`, counted from 1.

    Raises:
        ConfigError: if it is not of that form.

    >>> parse_shard("3/8"), parse_shard(None)
    ((3, 8), (1, 1))
    """
    if text is None:
        return WHOLE
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"shard {text!r} is not i/n with 1 <= i <= n; write 1/8 on the first of 8 machines")
    return int(number), int(count)


def in_shard(key: str, shard: Shard) -> bool:
    """True if a hexadecimal key belongs to the shard; every key belongs to exactly one."""
    return int(key[:16], 16) % shard[1] == shard[0] - 1


class KeyedLog:
    """A folder of rows by key.

    Args:
        folder: Made if it is not there (unless only read).
        shard: Whose file is written.
        read_only: Look, but neither heal nor write nor lock.
    Raises:
        DataError: if another process is writing this file, or the disk refuses.
    """

    def __init__(self, folder: Path, shard: Shard = WHOLE, *, read_only: bool = False) -> None:
        self.folder = folder
        self.path = folder / ("rows.jsonl" if shard == WHOLE else f"rows-{shard[0]}-of-{shard[1]}.jsonl")
        self.damaged = 0
        """Lines that are no JSON object with a key; what they answered is done again."""
        self.healed_bytes = 0
        """Length of the half-written last line that was cut off."""
        self._places: dict[bytes, tuple[int, int, bool]] = {}  # key -> file, offset, whether it is ok
        self._files: list[Path] = []
        self._reading: dict[int, BinaryIO] = {}
        self._out: BinaryIO | None = None
        if not read_only:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._out = self.path.open("ab", buffering=0)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be written ({error.strerror}); choose another folder") from error
            self._lock(self._out)
            self._heal()
        for path in sorted(folder.glob("rows*.jsonl")):
            self._index(path)

    def __enter__(self) -> "KeyedLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def is_ok(self, key: str) -> bool:
        """True if there is a row of this key and its `status` is "ok"."""
        place = self._places.get(bytes.fromhex(key))
        return place is not None and place[2]

    def get(self, key: str) -> Row | None:
        """The row of a key, read from disk: an ok one where there is one, else the latest."""
        place = self._places.get(bytes.fromhex(key))
        return None if place is None else self._read(place[0], place[1])

    def rows(self) -> Iterator[Row]:
        """The row of every key, in the order in which the keys were first seen."""
        for number, offset, _ in list(self._places.values()):
            yield self._read(number, offset)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; `row["key"]` names it. When the call returns the row outlives the process.

        Raises:
            DataError: if the disk refuses; nothing of the row is left then.
        """
        if self._out is None:
            raise DataError(f"{self.path}: was opened to be read only")
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        offset = os.fstat(self._out.fileno()).st_size
        try:
            if self._out.write(line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._out.truncate(offset)
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space, then run the same "
                "command again: it goes on from here"
            ) from error
        self._note(row, self._number(self.path), offset)

    def close(self) -> None:
        """Hand everything to the disk and close the files."""
        for handle in self._reading.values():
            handle.close()
        self._reading.clear()
        if self._out is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._out.fileno())
            self._out.close()
            self._out = None

    def _lock(self, handle: BinaryIO) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise DataError(
                f"{self.path}: another run is writing it; wait for it, or part the work with --shard i/n"
            ) from error
        except OSError:  # a file system without locks
            return

    def _heal(self) -> None:
        """Cut off the half line that a kill in the middle of a write has left."""
        with self.path.open("r+b") as handle:
            end = handle.seek(0, os.SEEK_END)
            start = end
            tail = b""
            while start and b"\n" not in tail:
                step = min(start, 1 << 16)
                start -= step
                handle.seek(start)
                tail = handle.read(step)
            whole = start + tail.rfind(b"\n") + 1
            if whole != end:
                handle.truncate(whole)
                self.healed_bytes = end - whole

    def _index(self, path: Path) -> None:
        number, offset = self._number(path), 0
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):  # another machine may be in the middle of its last line
                    try:
                        self._note(json.loads(line), number, offset)
                    except (ValueError, KeyError, TypeError):
                        self.damaged += 1
                offset += len(line)

    def _number(self, path: Path) -> int:
        if path not in self._files:
            self._files.append(path)
        return self._files.index(path)

    def _note(self, row: Mapping[str, Any], number: int, offset: int) -> None:
        key, is_ok = bytes.fromhex(row["key"]), row.get("status", "ok") == "ok"
        known = self._places.get(key)
        if known is None or is_ok or not known[2]:
            self._places[key] = (number, offset, is_ok)

    def _read(self, number: int, offset: int) -> Row:
        if number not in self._reading:
            self._reading[number] = self._files[number].open("rb")
        handle = self._reading[number]
        handle.seek(offset)
        row: Row = json.loads(handle.readline())
        return row
