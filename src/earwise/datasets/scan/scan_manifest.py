"""A manifest's sounds scanned into a log and a summary; a scan that was stopped goes on from its log.

Between `build/decode_pool.py` and `earwise build scan`. Each distinct file is decoded once, in the order in which rows
name it. The log grows by one line a clip; a file that could not be read is tried again next time. Held in memory: 8
bytes a file, and the paths of broken ones.
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
from earwise.data.index import hash64
from earwise.datasets.scan.clip_stats import ClipFacts, Engine, scan
from earwise.errors import DataError
from earwise.files import append_jsonl

QUANTILES = (0.05, 0.5, 0.95)


@dataclass(slots=True)
class Tally:
    """Counts over clips; `loudness` and `silence` in bins of 1 dB and 1 %."""

    clips: int = 0
    duration_s: float = 0.0
    shortest_s: float = float("inf")
    longest_s: float = 0.0
    silent: int = 0
    cut: int = 0
    broken: list[str] = field(default_factory=list)
    loudness: dict[int, int] = field(default_factory=dict)
    silence: dict[int, int] = field(default_factory=dict)

    def add(self, one: ClipFacts) -> None:
        """Count one clip."""
        self.clips += 1
        if one.error:
            self.broken.append(one.path)
            return
        self.duration_s += one.duration_s
        self.shortest_s, self.longest_s = min(self.shortest_s, one.duration_s), max(self.longest_s, one.duration_s)
        self.silent += one.peak < SILENCE_PEAK
        self.cut += one.heard_s < one.duration_s - 0.01
        for bins, value in ((self.loudness, round(one.loudness_db)), (self.silence, round(100 * one.silence_share))):
            bins[value] = bins.get(value, 0) + 1

    def summary(self) -> dict[str, Any]:
        """Plain values: counts, seconds, and quantiles (5 %, 50 %, 95 %)."""
        good = self.clips - len(self.broken)
        return {
            "clips": self.clips,
            "broken": len(self.broken),
            "silent": self.silent,
            "measured_in_part": self.cut,
            "hours": round(self.duration_s / 3600, 3),
            "duration_s": [round(value, 3) for value in (self.shortest_s, self.duration_s / good, self.longest_s)]
            if good
            else [],
            "loudness_db": quantiles(self.loudness),
            "silence_share": [value / 100 for value in quantiles(self.silence)],
        }


def tally(
    path: Path,
    log: Path | None = None,
    *,
    workers: int | None = None,
    engine: Engine = "processes",
    on_broken: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, float], None] = lambda clips, seconds: None,
) -> tuple[dict[str, Any], frozenset[str]]:
    """Scan the sounds of a manifest.

    Args:
        path: Manifest.
        log: JSON lines, one a clip; good files that stand there are not decoded again. None for no log.
        workers: As `scan`.
        engine: As `scan`.
        on_broken: Called with what is wrong with a file.
        on_progress: Called after each clip with clips decoded and seconds since the start.
    Returns:
        Plain values (see `Tally.summary`; also `decoded` in this run, `clips_per_s`), and the paths of broken files.
    Raises:
        DataError: for a bad row, a damaged log, or a disk that refuses.
    """
    total, seen = Tally(), set[int]()
    for one in _logged(log) if log is not None else ():
        if not one.error and hash64(one.path) not in seen:
            seen.add(hash64(one.path))
            total.add(one)
    known, began = total.clips, monotonic()
    for one in scan(_new(path, seen), workers, engine=engine):
        total.add(one)
        if log is not None:
            append_jsonl(log, one.as_dict())
        if one.error:
            on_broken(one.error)
        on_progress(total.clips - known, monotonic() - began)
    decoded = total.clips - known
    speed = {"decoded": decoded, "clips_per_s": round(decoded / max(monotonic() - began, 1e-9), 2)}
    return total.summary() | speed, frozenset(total.broken)


def quantiles(bins: dict[int, int]) -> list[int]:
    """The values below which 5 %, 50 % and 95 % of the counts lie; nothing for nothing.

    >>> quantiles({-30: 1, -20: 8, -10: 1})
    [-30, -20, -10]
    """
    found, total = [], sum(bins.values())
    for share in QUANTILES if total else ():
        below = 0
        for value in sorted(bins):
            below += bins[value]
            if below >= share * total:
                found.append(value)
                break
    return found


def _new(path: Path, seen: set[int]) -> Iterator[str]:
    """Every file that rows name and that was not seen, once."""
    for name in map(str, chain.from_iterable(example.audio_paths for example in manifest.iterate(path))):
        key = hash64(name)
        if key not in seen:
            seen.add(key)
            yield name


def _logged(log: Path) -> Iterator[ClipFacts]:
    """The clips of a log; a last line torn by a kill is cut off."""
    if not log.exists():
        return
    with log.open("r+b") as handle:
        place = 0
        for number, line in enumerate(iter(handle.readline, b""), 1):
            if not line.endswith(b"\n"):
                handle.truncate(place)
                return
            place += len(line)
            try:
                yield ClipFacts(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{log}:{number}: is no row of a scan ({error}); choose another --out") from error
