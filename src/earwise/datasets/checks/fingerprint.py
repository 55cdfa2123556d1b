"""Near copies of sounds: the same recording at another level, re-encoded, resampled, or cut shorter.

Computed where a clip is decoded (`build/decode_pool.py`), compared in `build/checks.py`. A sketch holds landmarks:
pairs of neighbouring peaks of the spectrogram, named by their two frequencies and the time between them, so neither
level nor start matters (Wang, ISMIR 2003; written anew). Of all landmarks the `SIZE` with the lowest hash are kept:
which those are depends on the sound only, so copies keep the same ones, and a clip costs 384 bytes whatever its length.
Two clips are candidates if enough common landmarks agree on one shift in time; where both sounds are at hand `likeness`
decides: two melodies on one synthesiser share landmarks, but their waveforms do not fit along the whole overlap. Prints
can be written to a file, by which a benchmark is kept out of training data by those who do not have its sounds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earwise.audio import num_samples
from earwise.errors import DataError
from earwise.files import write_jsonl
from earwise.types import Waveform

VERSION = 1
SIZE = 64  # landmarks kept
SAMPLE_RATE = 16000
FRAME_S, HOP_S = 0.064, 0.016
MAX_HZ = 4000.0  # above, codecs change most
PEAK_BINS, PEAK_FRAMES = 8, 8  # a peak is the highest point so far around it
PEAK_DB = 50.0  # below the loudest point nothing counts
FAN, REACH_FRAMES, REACH_BINS = 6, 63, 96  # each peak is paired with so many later ones within reach
MAX_MEETINGS = 20_000_000  # pairs of equal landmarks that are looked at: 1 GB; reached at some 20,000 clips
SHIFTS = 1 << 17  # more than the differences of two frame numbers
MIN_VOTES, MIN_SHARE = 5, 0.1
MIN_LIKENESS, MIN_OVERLAP = 0.8, 0.5  # correlation of the waveforms, over at least half of the shorter clip


@dataclass(frozen=True, slots=True)
class Sketch:
    """Landmarks of a clip, by rising hash."""

    keys: NDArray[np.uint32]
    """`(landmarks,)`, at most `SIZE`, all different."""
    frames: NDArray[np.uint16]
    """When each begins, in hops of 16 ms, modulo 65536."""


@dataclass(frozen=True, slots=True)
class Match:
    """Two clips that are near copies, by their place in the given sequence (first < second)."""

    first: int
    second: int
    votes: int
    """Common landmarks that agree on one shift."""
    share: float
    """Votes over the landmarks of the poorer clip."""


@dataclass(frozen=True, slots=True)
class Print:
    """What is enough to recognise a sound without having it."""

    path: str
    sha256: str
    sketch: Sketch


def sketch(wave: Waveform, sample_rate: int = SAMPLE_RATE) -> Sketch:
    """The landmarks of a clip; none of silence.

    Args:
        wave: Mono float32 `(samples,)`.
        sample_rate: Hz; 16000 where sketches of several collections are compared.
    """
    times, bins = _peaks(_spectrogram(wave, sample_rate))
    keys, frames = _landmarks(times, bins)
    keys, first = np.unique(keys, return_index=True)  # sorted by hash; the earliest of equal ones
    return Sketch(keys[:SIZE].astype(np.uint32), frames[first[:SIZE]].astype(np.uint16))


def matches(sketches: Sequence[Sketch], *, ours: int | None = None) -> list[Match]:
    """All near copies among sketches.

    Args:
        sketches: Any number.
        ours: If given, only pairs of one of the first `ours` with one of the rest (a benchmark's).
    Returns:
        Pairs in the order of `first`, then `second`. In sets so large that the most common landmarks are passed over
        (`MAX_MEETINGS`) copies that are cut short or noisy may be missed.
    """
    counts = np.array([len(one.keys) for one in sketches], dtype=np.int64)
    if not counts.sum():
        return []
    keys = np.concatenate([one.keys for one in sketches])
    frames = np.concatenate([one.frames for one in sketches]).astype(np.int64)
    owners = np.repeat(np.arange(len(sketches)), counts)
    first, second = _meetings(keys, owners)
    one, other = owners[first], owners[second]
    # one number for pair and shift, sorted: what agrees on a shift lies together
    if ours is not None:
        mixed = (one < ours) & (other >= ours)
        one, other, first, second = one[mixed], other[mixed], first[mixed], second[mixed]
    pairs = one * len(sketches) + other
    votes = np.sort(pairs * SHIFTS + frames[first] - frames[second] + SHIFTS // 2)
    agreed = np.searchsorted(votes, votes + 2, side="right") - np.arange(len(votes))
    enough = agreed >= MIN_VOTES
    best: dict[int, int] = {}
    for pair, count in zip((votes[enough] // SHIFTS).tolist(), agreed[enough].tolist(), strict=True):
        best[pair] = max(best.get(pair, 0), count)
    found = []
    for pair, count in sorted(best.items()):
        at, to = divmod(pair, len(sketches))
        share = count / int(min(counts[at], counts[to]))
        if share >= MIN_SHARE:
            found.append(Match(at, to, count, round(share, 3)))
    return found


def likeness(one: Waveform, other: Waveform) -> float:
    """How well two waveforms fit at the best shift: absolute correlation over their whole overlap, 0 to 1.

    Args:
        one: Mono float32 `(samples,)`.
        other: The same, at the same rate.

    >>> wave = np.sin(np.arange(4000.0) ** 1.3).astype(np.float32)
    >>> likeness(wave, -0.1 * wave[500:3500]) > 0.999
    True
    """
    shorter = min(len(one), len(other))
    if shorter == 0:
        return 0.0
    first, second = one.astype(np.float64), other.astype(np.float64)
    size = 1 << (len(first) + len(second) - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(first, size) * np.conj(np.fft.rfft(second, size)), size)
    # `second` begins `lag` samples after `first`
    lags = np.arange(-(len(second) - 1), len(first))
    starts, ends = np.maximum(lags, 0), np.minimum(len(first), len(second) + lags)
    far = ends - starts >= MIN_OVERLAP * shorter
    lags, starts, ends = lags[far], starts[far], ends[far]
    energies = [np.concatenate([[0.0], np.cumsum(np.square(wave))]) for wave in (first, second)]
    energy = (energies[0][ends] - energies[0][starts]) * (energies[1][ends - lags] - energies[1][starts - lags])
    whole = energies[0][-1] * energies[1][-1]
    # an overlap of near silence fits anything
    fits = np.where(energy > 1e-4 * whole, np.abs(product[lags % size]) / np.sqrt(np.maximum(energy, 1e-30)), 0.0)
    return float(min(1.0, fits.max(initial=0.0)))


def _meetings(keys: NDArray[np.uint32], owners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of all pairs of equal keys, the earlier owner first; the most common keys are passed over if need be."""
    order = np.lexsort((owners, keys))
    edges = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(keys)]])
    lengths = np.diff(edges)
    firsts, seconds, total = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for length in np.unique(lengths[lengths > 1]).tolist():  # rising: rare keys tell most
        starts = edges[:-1][lengths == length]
        total += len(starts) * length * (length - 1) // 2
        if total > MAX_MEETINGS:
            break
        left, right = np.triu_indices(length, 1)
        firsts.append(order[starts[:, None] + left].ravel())
        seconds.append(order[starts[:, None] + right].ravel())
    return np.concatenate(firsts), np.concatenate(seconds)


def _spectrogram(wave: Waveform, sample_rate: int) -> NDArray[np.float32]:
    """Level in dB relative to the loudest point `(frames, bins)`, up to `MAX_HZ`."""
    size, hop = num_samples(FRAME_S, sample_rate), num_samples(HOP_S, sample_rate)
    padded = np.pad(wave, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][: len(wave) // hop + 1]
    window = np.hanning(size).astype(np.float32)
    bins = int(MAX_HZ * FRAME_S) + 1
    spectrum = np.abs(np.fft.rfft(frames * window, axis=1)[:, :bins]).astype(np.float32)
    loudest = float(spectrum.max(initial=0.0))
    if loudest <= 1e-5 * size:
        return np.zeros((0, bins), np.float32)
    level: NDArray[np.float32] = 20 * np.log10(np.maximum(spectrum / loudest, 1e-6))
    return level


def _peaks(level: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames and bins of the points that are highest around them, by time."""
    if not len(level):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    around = _sliding_max(_sliding_max(level, PEAK_BINS, 1), PEAK_FRAMES, 0)
    at = np.argwhere((level >= around) & (level > -PEAK_DB))
    return at[:, 0], at[:, 1]


def _sliding_max(values: NDArray[np.float32], reach: int, axis: int) -> NDArray[np.float32]:
    """Maximum over `reach` neighbours on either side."""
    width = 2 * reach + 1
    pad = [(0, 0), (0, 0)]
    pad[axis] = (reach, reach)
    found = np.moveaxis(np.pad(values, pad, constant_values=-np.inf), axis, 0)
    covered = 1
    while covered < width:  # doubling: the maximum over 2, 4, 8 ... neighbours
        step = min(covered, width - covered)
        found = np.maximum(found[: len(found) - step], found[step:])
        covered += step
    return np.moveaxis(found, 0, axis)


def _landmarks(times: NDArray[np.int64], bins: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes and beginnings of all pairs of peaks within reach."""
    keys, starts = [], []
    taken = np.zeros(len(times), np.int64)
    for ahead in range(1, 4 * FAN):
        if ahead >= len(times):
            break
        gap, jump = times[ahead:] - times[:-ahead], bins[ahead:] - bins[:-ahead]
        near = (gap > 0) & (gap <= REACH_FRAMES) & (np.abs(jump) <= REACH_BINS) & (taken[:-ahead] < FAN)
        taken[:-ahead] += near
        low, high = bins[:-ahead][near] // 2, bins[ahead:][near] // 2
        keys.append((low << 16 | high << 8 | gap[near] // 2).astype(np.uint64))
        starts.append(times[:-ahead][near])
    if not keys:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    mixed = np.concatenate(keys) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: spreads neighbours apart
    return (mixed >> np.uint64(32)), np.concatenate(starts)


def write(path: Path, prints: Iterable[Print]) -> int:
    """Write prints as JSON lines; returns their number."""
    return write_jsonl(
        path,
        (
            {
                "path": one.path,
                "sha256": one.sha256,
                "version": VERSION,
                "keys": one.sketch.keys.tolist(),
                "frames": one.sketch.frames.tolist(),
            }
            for one in prints
        ),
    )


def is_prints(path: Path) -> bool:
    """True if the file's first line is a print (and not the row of a manifest)."""
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline() or "null")
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"sha256", "keys", "frames"} <= first.keys()


def read(path: Path) -> list[Print]:
    """Read what `write` wrote.

    Raises:
        DataError: for a line that is no print, or one of another version.
    """
    found = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                version = row["version"]
                landmarks = Sketch(np.array(row["keys"], np.uint32), np.array(row["frames"], np.uint16))
                found.append(Print(str(row["path"]), str(row["sha256"]), landmarks))
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise DataError(f"{path}:row {number}: is no print ({error}); write the file again") from error
            if version != VERSION:
                raise DataError(f"{path}:row {number}: is of version {version}, this is {VERSION}; write it again")
    return found
