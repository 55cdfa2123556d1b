"""Every sound of a collection decoded once, on several processes, into a few facts a clip; what is broken is told.

Between a list of files and whoever judges them (`build/checks.py`, `earwise build scan`). Memory does not grow with
the number of clips, nor with their length: of a clip longer than `MAX_HEARD_S` the first `MAX_HEARD_S` are measured,
and `heard_s` says so. A file that cannot be read, or on which the decoder crashes, is a fact with an `error`; it stops
nobody.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from earwise.audio import audio_sha256, decode, num_samples, probe, seconds
from earwise.data.process_pool import ordered_map
from earwise.errors import AudioError, ConfigError
from earwise.types import Waveform

SAMPLE_RATE = 16000
MAX_HEARD_S = 600.0
FRAME_S = 0.02
SILENT_DB = -60.0  # a frame below is silence: the noise of a quiet room on a good microphone
FLOOR_DB = -120.0  # digital silence, in place of minus infinity, which JSON does not know

Fingerprint = Callable[[Waveform, int], Any]
Engine = Literal["processes", "ray"]
ENGINES: tuple[Engine, ...] = ("processes", "ray")


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What was found out about one file."""

    path: str
    error: str = ""
    """Why it cannot be read, one line; empty for a good file. All else is 0 or empty then."""
    sha256: str = ""
    """Of the file's bytes."""
    sample_rate: int = 0
    """Hz, the file's own."""
    channels: int = 0
    duration_s: float = 0.0
    heard_s: float = 0.0
    """How much of it the next three are about."""
    peak: float = 0.0
    """Largest absolute sample of the mono 16 kHz sound, full scale 1."""
    loudness_db: float = FLOOR_DB
    """Root mean square over `heard_s`, dB of full scale, not below -120."""
    silence_share: float = 0.0
    """Share of 20 ms frames whose root mean square is below -60 dB of full scale."""
    fingerprint: Any = None
    """What the caller's function made of the mono 16 kHz sound."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a log."""
        return asdict(self)


def scan(
    paths: Iterable[Path | str],
    workers: int | None = None,
    *,
    fingerprint: Fingerprint | None = None,
    engine: Engine = "processes",
) -> Iterator[ClipFacts]:
    """Facts of every file, in the order of `paths`.

    Args:
        paths: Any number of files, taken as needed; a file named twice is decoded twice.
        workers: Processes; None for one per core, 1 for none but this one.
        fingerprint: Called with waveform and rate (16000 Hz) where the sound is decoded; a module's function or a
            `partial` of one, its result small and picklable.
        engine: `processes` of this machine, or a `ray` cluster (extra `ray`).
    Raises:
        ConfigError: if `engine` or `workers` is out of range.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r} is none of {', '.join(ENGINES)}")
    work = partial(facts, fingerprint=fingerprint)
    names = map(str, paths)
    if engine == "ray":
        from earwise.datasets.scan.ray_pool import ray_map

        return ray_map(work, names, workers=workers)
    return ordered_map(work, names, workers=workers, on_crash=_crashed)


def facts(path: str, *, fingerprint: Fingerprint | None = None) -> ClipFacts:
    """Facts of one file; never raises over what is in it."""
    file = Path(path)
    try:
        info = probe(file)
        wave = decode(file, SAMPLE_RATE, long_audio="truncate", max_s=MAX_HEARD_S)
        digest = audio_sha256(file)
    except AudioError as error:
        return ClipFacts(path, str(error))
    levels = frame_levels_db(wave)
    return ClipFacts(
        path,
        sha256=digest,
        sample_rate=info.sample_rate,
        channels=info.channels,
        duration_s=round(info.duration_s, 6),
        heard_s=round(seconds(len(wave), SAMPLE_RATE), 6),
        peak=round(float(np.abs(wave).max()), 6),
        loudness_db=round(_decibels(float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))), 2),
        silence_share=round(float(np.mean(levels < SILENT_DB)), 4),
        fingerprint=None if fingerprint is None else fingerprint(wave, SAMPLE_RATE),
    )


def frame_levels_db(wave: Waveform, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Level of each whole 20 ms frame `(frames,)`, dB of full scale; a shorter clip is one frame.

    >>> frame_levels_db(np.full(640, 0.1, np.float32)).round(3).tolist()
    [-20.0, -20.0]
    """
    size = min(len(wave), num_samples(FRAME_S, sample_rate))
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))


def _decibels(rms: float) -> float:
    return max(FLOOR_DB, 20 * math.log10(rms)) if rms > 0 else FLOOR_DB


def _crashed(path: str) -> ClipFacts:
    return ClipFacts(path, f"{path}: crashes the decoder; fetch it again or leave it out")
