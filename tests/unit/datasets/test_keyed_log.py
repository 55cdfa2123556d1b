"""The log of finished work: locks, full disks, and the time that opening takes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from earwise.datasets.teachers.keyed_log import KeyedLog
from earwise.errors import DataError


def test_two_runs_cannot_write_one_log(tmp_path: Path) -> None:
    with KeyedLog(tmp_path), pytest.raises(DataError, match=r"another run.*--shard"):
        KeyedLog(tmp_path)
    KeyedLog(tmp_path).close()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit of the file size stands in for a full disk: the row that does not fit leaves nothing in the file."""
    code = f"""
import resource, signal
from pathlib import Path
from earwise.datasets.teachers.keyed_log import KeyedLog
from earwise.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = KeyedLog(Path({str(tmp_path)!r}))
try:
    for number in range(100):
        log.append({{"key": f"{{number:064x}}", "text": "x" * 50}})
except DataError as error:
    print(number, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, message = done.stdout.split(" ", 1)
    assert "free some space, then run the same command again" in message
    data = (tmp_path / "rows.jsonl").read_bytes()
    assert data.endswith(b"}\n") and len(data.splitlines()) == int(count) > 3


def test_opening_a_large_log_is_fast(tmp_path: Path) -> None:
    """50,000 rows take well under a second of processor time, so a million rows take about ten seconds."""
    line = '{{"key": "{0:064x}", "status": "ok", "value": "a sentence of some length, as a teacher writes it"}}\n'
    (tmp_path / "rows.jsonl").write_text("".join(line.format(number) for number in range(50_000)))
    start = time.process_time()
    with KeyedLog(tmp_path, read_only=True) as log:
        assert len(log) == 50_000 and (log.get(f"{49_999:064x}") or {})["value"].startswith("a sentence")
    assert time.process_time() - start < 2.0
