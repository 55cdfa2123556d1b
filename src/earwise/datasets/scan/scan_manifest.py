"""Scans the audio files of a manifest: a log with one row per file, and a summary of lengths, levels and broken files.

`earwise build scan`. Each distinct file is decoded once, in the order in which the rows name it. The log grows by one
line per file, and an interrupted scan continues from its log; a file that could not be read is tried again. Held in
memory: 8 bytes per file, and the paths of unreadable files.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

from earwise.audio import SILENCE_PEAK
from earwise.data import manifest
from earwise.data.index_build import hash64
from earwise.datasets.scan.clip_stats import Backend, ClipStats, scan_clips
from earwise.errors import ConfigError, DataError
from earwise.files import append_jsonl

QUANTILES = (0.05, 0.5, 0.95)
ROUNDING_S = 0.01  # a clip whose measured part is shorter by more than this was measured only in part


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """Options of a scan."""

    log: Path | None = None
    """JSON lines to append to, one row per file; readable files in it are not decoded again. None writes no log."""
    keep: Path | None = None
    """Manifest to write with the rows whose audio files can all be read; None writes none."""
    workers: int | None = None
    """Number of processes; None for one per core."""
    backend: Backend = "processes"


@dataclass(slots=True)
class ScanTotals:
    """Running totals over the files of a scan."""

    clips: int = 0
    duration_s: float = 0.0
    shortest_s: float = float("inf")
    longest_s: float = 0.0
    silent: int = 0
    partly_measured: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Paths of files that cannot be read."""
    loudness_counts: dict[int, int] = field(default_factory=dict)
    """Level rounded to 1 dB -> number of files."""
    silence_counts: dict[int, int] = field(default_factory=dict)
    """Share of silence rounded to 1 % -> number of files."""

    def add(self, clip: ClipStats) -> None:
        """Count one file."""
        self.clips += 1
        if clip.error:
            self.unreadable.append(clip.path)
            return
        self.duration_s += clip.duration_s
        self.shortest_s = min(self.shortest_s, clip.duration_s)
        self.longest_s = max(self.longest_s, clip.duration_s)
        self.silent += clip.peak < SILENCE_PEAK
        self.partly_measured += clip.measured_s < clip.duration_s - ROUNDING_S
        loudness, silence = round(clip.loudness_db), round(100 * clip.silence_share)
        self.loudness_counts[loudness] = self.loudness_counts.get(loudness, 0) + 1
        self.silence_counts[silence] = self.silence_counts.get(silence, 0) + 1

    def summary(self) -> dict[str, Any]:
        """Plain JSON values.

        Returns:
            Numbers of files (`clips`, `broken`, `silent`, `measured_in_part`), `hours`, `duration_s` (shortest, mean,
            longest), and quantiles (5 %, 50 %, 95 %) of `loudness_db` and `silence_share`.
        """
        readable = self.clips - len(self.unreadable)
        durations = (self.shortest_s, self.duration_s / readable, self.longest_s) if readable else ()
        return {
            "clips": self.clips,
            "broken": len(self.unreadable),
            "silent": self.silent,
            "measured_in_part": self.partly_measured,
            "hours": round(self.duration_s / 3600, 3),
            "duration_s": [round(value, 3) for value in durations],
            "loudness_db": quantiles(self.loudness_counts),
            "silence_share": [value / 100 for value in quantiles(self.silence_counts)],
        }


def scan_manifest(
    path: Path, options: ScanOptions | None = None, notify: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, Any], frozenset[str]]:
    """Decode every audio file of a manifest once.

    Args:
        path: Manifest.
        options: Log, output manifest and processes; None for the defaults.
        notify: Callback that receives a line for every unreadable file.
    Returns:
        The summary (see `ScanTotals.summary`; also `decoded`, the number of files decoded by this call, `clips_per_s`,
        and with `options.keep` `kept`, the number of rows written), and the paths of the unreadable files.
    Raises:
        ConfigError: if the log or the output manifest is the manifest itself.
        DataError: for an invalid row, a damaged log, or a file that cannot be written.
    """
    options = options or ScanOptions()
    for file in (options.log, options.keep):
        if file is not None and file.resolve() == path.resolve():
            raise ConfigError(f"{file} is the manifest itself; choose another name")
    totals, scanned = ScanTotals(), set[int]()
    for clip in _read_log(options.log) if options.log is not None else ():
        if not clip.error and hash64(clip.path) not in scanned:
            scanned.add(hash64(clip.path))
            totals.add(clip)
    from_log, start = totals.clips, monotonic()
    # counted first, for the time left: reading a manifest takes little time beside decoding its files
    total = sum(1 for _ in _unscanned_files(path, set(scanned)))
    for clip in scan_clips(_unscanned_files(path, scanned), options.workers, backend=options.backend, total=total):
        totals.add(clip)
        if options.log is not None:
            append_jsonl(options.log, clip.as_dict())
        if clip.error:
            notify(clip.error)
    decoded = totals.clips - from_log
    speed = {"decoded": decoded, "clips_per_s": round(decoded / max(monotonic() - start, 1e-9), 2)}
    summary, unreadable = totals.summary() | speed, frozenset(totals.unreadable)
    if options.keep is not None:
        rows = (row for row in manifest.iterate(path) if unreadable.isdisjoint(map(str, row.audio_paths)))
        summary["kept"] = manifest.write(options.keep, rows)
    return summary, unreadable


def quantiles(counts: dict[int, int]) -> list[int]:
    """The values below which 5 %, 50 % and 95 % of the counted items lie; an empty list if there are no items.

    >>> quantiles({-30: 1, -20: 8, -10: 1})
    [-30, -20, -10]
    """
    values, total = [], sum(counts.values())
    for share in QUANTILES if total else ():
        below = 0
        for value in sorted(counts):
            below += counts[value]
            if below >= share * total:
                values.append(value)
                break
    return values


def _unscanned_files(path: Path, scanned: set[int]) -> Iterator[str]:
    """Every file that the rows name and whose hash is not in `scanned`, once; its hash is added."""
    for name in map(str, chain.from_iterable(example.audio_paths for example in manifest.iterate(path))):
        key = hash64(name)
        if key not in scanned:
            scanned.add(key)
            yield name


def _read_log(log: Path) -> Iterator[ClipStats]:
    """The rows of a log; an incomplete last line, which a killed process left, is cut off."""
    if not log.exists():
        return
    with log.open("r+b") as handle:
        offset = 0
        for number, line in enumerate(iter(handle.readline, b""), 1):
            if not line.endswith(b"\n"):
                handle.truncate(offset)
                return
            offset += len(line)
            try:
                yield ClipStats.from_dict(json.loads(line))
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{log}:{number}: is no row of a scan ({error}); choose another --out") from error
