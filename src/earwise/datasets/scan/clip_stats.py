"""Decodes audio files on several processes and measures each: length, level, silence, hash, and whether it is readable.

Used by `earwise build scan`, by the checks of a data set and by the builders of questions. Memory grows neither with
the number of files nor with their length: of a clip longer than `MAX_MEASURED_S` only the first `MAX_MEASURED_S` are
decoded. A file that cannot be read, or on which the decoder crashes, yields a `ClipStats` with an `error`; the scan
continues.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from earwise import progress
from earwise.audio import audio_sha256, decode, num_samples, probe, seconds
from earwise.data.process_pool import ordered_map
from earwise.errors import AudioError, ConfigError
from earwise.types import Waveform

SAMPLE_RATE = 16000
MAX_MEASURED_S = 600.0
FRAME_S = 0.02
SILENT_DB = -60.0  # a frame below this level counts as silence: the noise of a quiet room on a good microphone
FLOOR_DB = -120.0  # level of digital silence, in place of minus infinity, which JSON cannot represent

Analysis = Callable[[Waveform, int], Any]
"""Function of a mono waveform and its sample rate (16000 Hz)."""
Backend = Literal["processes", "ray"]
BACKENDS: tuple[Backend, ...] = ("processes", "ray")
LOG_NAMES = {"measured_s": "heard_s", "analysis": "fingerprint"}
"""Fields of `ClipStats` that have another name in logs."""


@dataclass(frozen=True, slots=True)
class ClipStats:
    """Measurements of one audio file."""

    path: str
    error: str = ""
    """Why the file cannot be read, one line; empty for a readable file. With an error all other fields are empty."""
    sha256: str = ""
    """SHA-256 of the file's bytes."""
    sample_rate: int = 0
    """Sample rate of the file, Hz."""
    channels: int = 0
    duration_s: float = 0.0
    measured_s: float = 0.0
    """Length of the first part of the file, to which the following fields refer."""
    peak: float = 0.0
    """Largest absolute sample of the mono 16 kHz waveform; full scale is 1."""
    loudness_db: float = FLOOR_DB
    """Root mean square in dB of full scale, at least -120."""
    silence_share: float = 0.0
    """Share of 20 ms frames whose root mean square is below -60 dB of full scale."""
    analysis: Any = None
    """Result of the caller's `analysis` function on the mono 16 kHz waveform."""

    def as_dict(self) -> dict[str, Any]:
        """Row of a log."""
        return {LOG_NAMES.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "ClipStats":
        """Read a row of a log.

        Raises:
            TypeError: if the row has a field that `ClipStats` does not have, or no path.
        """
        names = {stored: name for name, stored in LOG_NAMES.items()}
        return cls(**{names.get(name, name): value for name, value in row.items()})


def scan_clips(
    paths: Iterable[Path | str],
    workers: int | None = None,
    *,
    analysis: Analysis | None = None,
    backend: Backend = "processes",
    total: int | None = None,
) -> Iterator[ClipStats]:
    """Measure files, in the order of `paths`.

    Args:
        paths: Any number of files, taken as needed; a file that is named twice is decoded twice.
        workers: Number of processes; None for one per core, 1 to run in the calling process.
        analysis: Function that is called with each waveform, in the process that decoded it. It must be defined at the
            top level of a module (or be a `partial` of such a function), and its result must be small and picklable.
        backend: `processes` of this machine, or a `ray` cluster (needs the extra `ray`).
        total: Number of files, for the time left; not needed if `paths` has a length.
    Raises:
        ConfigError: if `backend` or `workers` has an invalid value.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    measure = partial(clip_stats, analysis=analysis)
    names = map(str, paths)
    if backend == "ray":
        from earwise.datasets.scan.ray_pool import ray_map

        results: Iterator[ClipStats] = ray_map(measure, names, workers=workers)
    else:
        results = ordered_map(measure, names, workers=workers, on_crash=_decoder_crash)
    return progress.track(results, "audio files decoded", len(paths) if isinstance(paths, Sized) else total)


def clip_stats(path: str, *, analysis: Analysis | None = None) -> ClipStats:
    """Measure one file; an unreadable file gives stats with an `error` instead of an exception."""
    file = Path(path)
    try:
        info = probe(file)
        waveform = decode(file, SAMPLE_RATE, long_audio="truncate", max_s=MAX_MEASURED_S)
        sha256 = audio_sha256(file)
    except AudioError as error:
        return ClipStats(path, str(error))
    levels = frame_levels_db(waveform)
    return ClipStats(
        path,
        sha256=sha256,
        sample_rate=info.sample_rate,
        channels=info.channels,
        duration_s=round(info.duration_s, 6),
        measured_s=round(seconds(len(waveform), SAMPLE_RATE), 6),
        peak=round(float(np.abs(waveform).max()), 6),
        loudness_db=round(_decibels(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))), 2),
        silence_share=round(float(np.mean(levels < SILENT_DB)), 4),
        analysis=None if analysis is None else analysis(waveform, SAMPLE_RATE),
    )


def frame_levels_db(waveform: Waveform, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Level of each complete 20 ms frame `(frames,)`, dB of full scale; a shorter clip is one frame.

    >>> frame_levels_db(np.full(640, 0.1, np.float32)).round(3).tolist()
    [-20.0, -20.0]
    """
    size = min(len(waveform), num_samples(FRAME_S, sample_rate))
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))


def _decibels(rms: float) -> float:
    return max(FLOOR_DB, 20 * math.log10(rms)) if rms > 0 else FLOOR_DB


def _decoder_crash(path: str) -> ClipStats:
    """Stats of a file that killed the process that decoded it."""
    return ClipStats(path, f"{path}: crashes the decoder; fetch it again or leave it out")
