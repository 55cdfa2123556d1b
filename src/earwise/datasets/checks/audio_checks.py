"""Checks of the audio of a data set: copies and near copies, benchmark clips, silence, unreadable files, statistics.

Second part of `checks/check_examples.py`. Every file is decoded once, on several processes (`scan/clip_stats.py`); of
each only its measurements and a sketch of 384 bytes are kept.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earwise.audio import SILENCE_PEAK, decode
from earwise.datasets.checks import fingerprint
from earwise.datasets.checks.fingerprint import MIN_SIMILARITY, Fingerprint
from earwise.datasets.scan.clip_stats import ClipStats, scan_clips

CLIPPED_PEAK = 0.999
COMPARISON_RATE = 8000  # Hz, sample rate at which the waveforms of possible copies are compared


@dataclass(frozen=True, slots=True)
class _ReadableClip:
    """A file that could be decoded."""

    path: Path
    split: str
    stats: ClipStats
    """Measurements; `analysis` is the clip's sketch."""


def fingerprint_clips(paths: Iterable[Path], workers: int | None = 1) -> list[Fingerprint]:
    """Hash and sketch of every file that can be read.

    Args:
        paths: Audio files; repeated paths are decoded once.
        workers: Number of processes that decode; None for one per core.
    """
    clips = scan_clips(sorted(set(paths)), workers, analysis=fingerprint.sketch)
    return [Fingerprint(clip.path, clip.sha256, clip.analysis) for clip in clips if not clip.error]


def check_audio(
    clip_splits: Mapping[Path, str], benchmark_clips: Sequence[Fingerprint], workers: int | None
) -> dict[str, Any]:
    """Decode all files of a data set and compare them.

    Args:
        clip_splits: Audio file -> split.
        benchmark_clips: Fingerprints of clips that must not be in the data.
        workers: Number of processes that decode; None for one per core.
    Returns:
        Part of the report of `check_examples`: `copies`, `near_copies`, `benchmark`, `silent`, `broken`, `sounds`.
    """
    paths = sorted(clip_splits)
    clips: list[_ReadableClip] = []
    silent, unreadable = [], []
    for path, stats in zip(paths, scan_clips(paths, workers, analysis=fingerprint.sketch), strict=True):
        if stats.error:
            unreadable.append(stats.error)
            continue
        clips.append(_ReadableClip(path, clip_splits[path], stats))
        if stats.peak < SILENCE_PEAK:
            silent.append(str(path))
    near_copies, within_split = _near_copies(clips)
    return {
        "copies": _copies(clips),
        "near_copies": near_copies,
        "benchmark": _benchmark_matches(clips, benchmark_clips),
        "silent": silent,
        "broken": unreadable,
        "sounds": _statistics(clips) | {"near_copies_in_one_split": within_split},
    }


def no_audio_checks() -> dict[str, Any]:
    """The report of `check_audio` for a data set whose audio is not read."""
    return {"copies": [], "near_copies": [], "benchmark": [], "silent": [], "broken": [], "sounds": {}}


def _copies(clips: Sequence[_ReadableClip]) -> list[str]:
    """One line for each set of identical files that are in several splits, with one path per split."""
    paths: dict[str, dict[str, Path]] = defaultdict(dict)
    for clip in clips:
        paths[clip.stats.sha256].setdefault(clip.split, clip.path)
    return sorted(
        " and ".join(f"{path} ({split})" for split, path in sorted(by_split.items())) + " are the same bytes"
        for by_split in paths.values()
        if len(by_split) > 1
    )


def _near_copies(clips: Sequence[_ReadableClip]) -> tuple[list[str], int]:
    """Near copies in different splits, one line each, and the number of candidates within one split.

    Identical files are not near copies. Candidates in different splits are confirmed by comparing their waveforms.
    """
    across_splits, within_split = [], 0
    for candidate in fingerprint.find_near_copies([clip.stats.analysis for clip in clips]):
        first, second = clips[candidate.first], clips[candidate.second]
        if first.stats.sha256 == second.stats.sha256:
            continue
        if first.split == second.split:
            within_split += 1
            continue
        similarity = fingerprint.waveform_similarity(
            decode(first.path, COMPARISON_RATE), decode(second.path, COMPARISON_RATE)
        )
        if similarity >= MIN_SIMILARITY:
            across_splits.append(
                f"{first.path} ({first.split}) and {second.path} ({second.split}) correlate at {similarity:.0%}"
            )
    return across_splits, within_split


def _benchmark_matches(clips: Sequence[_ReadableClip], benchmark_clips: Sequence[Fingerprint]) -> list[str]:
    """One line for each clip that is a benchmark's, by its bytes or by its sketch."""
    if not benchmark_clips:
        return []
    names = {entry.sha256: entry.path for entry in benchmark_clips}
    lines = {clip.path: f"{clip.path} is {names[clip.stats.sha256]}" for clip in clips if clip.stats.sha256 in names}
    sketches = [clip.stats.analysis for clip in clips] + [entry.sketch for entry in benchmark_clips]
    for match in fingerprint.find_near_copies(sketches, n_data=len(clips)):
        path, benchmark_path = clips[match.first].path, benchmark_clips[match.second - len(clips)].path
        lines.setdefault(path, f"{path} sounds like {benchmark_path} ({match.share:.0%})")
    return list(lines.values())


def _statistics(clips: Sequence[_ReadableClip]) -> dict[str, Any]:
    """Durations, levels and formats of the files."""
    if not clips:
        return {"clips": 0}
    stats = [clip.stats for clip in clips]
    durations = np.array([item.duration_s for item in stats])
    levels = np.array([item.loudness_db for item in stats if item.peak >= SILENCE_PEAK] or [0.0])
    hours: dict[str, float] = defaultdict(float)
    for clip in clips:
        hours[clip.split] += clip.stats.duration_s / 3600
    sample_rates, channels = Counter(item.sample_rate for item in stats), Counter(item.channels for item in stats)
    return {
        "clips": len(clips),
        "hours": {split: round(value, 4) for split, value in sorted(hours.items())},
        "duration_s": _distribution(durations),
        "loudness_db": _distribution(levels),
        "mostly_silent": sum(item.silence_share > 0.5 for item in stats),
        "clipped": sum(item.peak >= CLIPPED_PEAK for item in stats),
        "sample_rates": {str(rate): count for rate, count in sample_rates.most_common()},
        "channels": {str(number): count for number, count in channels.most_common()},
    }


def _distribution(values: Any) -> dict[str, Any]:
    """Minimum, 5 %, median, 95 %, maximum, and a histogram of twenty bins (`counts`, `edges`)."""
    counts, edges = np.histogram(values, bins=20)
    low, median, high = np.percentile(values, (5, 50, 95))
    return {
        "min": round(float(values.min()), 3),
        "p5": round(float(low), 3),
        "median": round(float(median), 3),
        "p95": round(float(high), 3),
        "max": round(float(values.max()), 3),
        "counts": counts.tolist(),
        "edges": [round(float(edge), 3) for edge in edges],
    }
