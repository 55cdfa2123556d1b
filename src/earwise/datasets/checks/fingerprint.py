"""Audio fingerprints: find near copies of a recording (other level, other codec, other sample rate, or trimmed).

A sketch is computed where a clip is decoded (`scan/clip_stats.py`), and sketches are compared by the checks of a data
set (`checks/audio_checks.py`). A sketch holds landmarks: pairs of neighbouring peaks of the spectrogram, identified by
their two frequencies and the time between them, so neither level nor start time matters (Wang, ISMIR 2003; own
implementation). Of all landmarks the `SKETCH_SIZE` with the lowest hash are kept. Which ones these are depends only on
the audio, so copies keep the same ones, and a clip costs 384 bytes whatever its length. Two clips are candidates if
enough common landmarks agree on one shift in time. If both waveforms are available, `waveform_similarity` decides: two
melodies on one synthesiser share landmarks, but their waveforms do not correlate along the whole overlap. Fingerprints
can be written to a file, so that a benchmark can be kept out of training data without having its audio.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earwise.audio import num_samples
from earwise.data.readers.text_lines import json_lines
from earwise.errors import DataError
from earwise.files import write_jsonl
from earwise.types import Waveform

VERSION = 1
SKETCH_SIZE = 64  # landmarks kept per clip
SAMPLE_RATE = 16000
FRAME_S, HOP_S = 0.064, 0.016
MAX_HZ = 4000.0  # codecs change higher frequencies most
PEAK_BINS, PEAK_FRAMES = 8, 8  # a peak is the highest point within this distance
PEAK_DB = 50.0  # points that are further below the loudest point are ignored
FAN, REACH_FRAMES, REACH_BINS = 6, 63, 96  # each peak is paired with up to FAN later peaks within this distance
MAX_EQUAL_PAIRS = 20_000_000  # pairs of equal landmarks that are compared: 1 GB, reached at about 20,000 clips
SHIFTS = 1 << 17  # larger than any difference of two frame numbers
MIN_VOTES, MIN_SHARE = 5, 0.1
MIN_SIMILARITY, MIN_OVERLAP = 0.8, 0.5  # correlation of the waveforms, over at least half of the shorter clip


@dataclass(frozen=True, slots=True)
class Sketch:
    """Landmarks of a clip, in ascending order of their hashes."""

    keys: NDArray[np.uint32]
    """Hashes of the landmarks `(landmarks,)`, at most `SKETCH_SIZE`, all different."""
    frames: NDArray[np.uint16]
    """Frame (16 ms) at which each landmark begins, modulo 65536 `(landmarks,)`."""


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Two clips that are probably copies of each other."""

    first: int
    """Position of the first clip in the sequence that was searched."""
    second: int
    """Position of the second clip; greater than `first`."""
    votes: int
    """Number of common landmarks that agree on one shift in time."""
    share: float
    """Votes divided by the number of landmarks of the clip that has fewer."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Path, hash and sketch of a clip: enough to recognise it without having its audio."""

    path: str
    sha256: str
    sketch: Sketch


def sketch(waveform: Waveform, sample_rate: int = SAMPLE_RATE) -> Sketch:
    """Landmarks of a clip; silence has none.

    Args:
        waveform: Mono float32 `(samples,)`.
        sample_rate: Sample rate in Hz; 16000 if sketches of several data sets are to be compared.
    """
    times, bins = _peaks(_spectrogram(waveform, sample_rate))
    keys, frames = _landmarks(times, bins)
    keys, first = np.unique(keys, return_index=True)  # sorted by hash; of equal hashes the earliest
    return Sketch(keys[:SKETCH_SIZE].astype(np.uint32), frames[first[:SKETCH_SIZE]].astype(np.uint16))


def find_near_copies(sketches: Sequence[Sketch], *, n_data: int | None = None) -> list[NearCopy]:
    """Find all near copies among sketches.

    Args:
        sketches: Sketches of all clips.
        n_data: If given, only pairs of one of the first `n_data` sketches (a data set's) with one of the others (a
            benchmark's) are searched.
    Returns:
        Pairs in the order of `first`, then `second`. In data sets so large that the most common landmarks are ignored
        (`MAX_EQUAL_PAIRS`), trimmed or noisy copies may be missed.
    """
    counts = np.array([len(item.keys) for item in sketches], dtype=np.int64)
    if not counts.sum():
        return []
    keys = np.concatenate([item.keys for item in sketches])
    frames = np.concatenate([item.frames for item in sketches]).astype(np.int64)
    owners = np.repeat(np.arange(len(sketches)), counts)
    first, second = _equal_pairs(keys, owners)
    if n_data is not None:
        mixed = (owners[first] < n_data) & (owners[second] >= n_data)
        first, second = first[mixed], second[mixed]
    pairs = owners[first] * len(sketches) + owners[second]
    # pair and shift are coded into one number, so that sorting brings landmarks that agree next to each other
    votes = np.sort(pairs * SHIFTS + frames[first] - frames[second] + SHIFTS // 2)
    agreed = np.searchsorted(votes, votes + 2, side="right") - np.arange(len(votes))
    enough = agreed >= MIN_VOTES
    best: dict[int, int] = {}
    for pair, count in zip((votes[enough] // SHIFTS).tolist(), agreed[enough].tolist(), strict=True):
        best[pair] = max(best.get(pair, 0), count)
    near_copies = []
    for pair, count in sorted(best.items()):
        first_clip, second_clip = divmod(pair, len(sketches))
        share = count / int(min(counts[first_clip], counts[second_clip]))
        if share >= MIN_SHARE:
            near_copies.append(NearCopy(first_clip, second_clip, count, round(share, 3)))
    return near_copies


def waveform_similarity(waveform: Waveform, other_waveform: Waveform) -> float:
    """Absolute correlation of two waveforms over their whole overlap, at the shift with the highest value, 0 to 1.

    Args:
        waveform: Mono float32 `(samples,)`.
        other_waveform: Mono float32 `(samples,)` at the same sample rate.

    >>> waveform = np.sin(np.arange(4000.0) ** 1.3).astype(np.float32)
    >>> waveform_similarity(waveform, -0.1 * waveform[500:3500]) > 0.999
    True
    """
    shorter = min(len(waveform), len(other_waveform))
    if shorter == 0:
        return 0.0
    first, second = waveform.astype(np.float64), other_waveform.astype(np.float64)
    size = 1 << (len(first) + len(second) - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(first, size) * np.conj(np.fft.rfft(second, size)), size)
    # `second` begins `lag` samples after `first`
    lags = np.arange(-(len(second) - 1), len(first))
    starts, ends = np.maximum(lags, 0), np.minimum(len(first), len(second) + lags)
    long_enough = ends - starts >= MIN_OVERLAP * shorter
    lags, starts, ends = lags[long_enough], starts[long_enough], ends[long_enough]
    energies = [np.concatenate([[0.0], np.cumsum(np.square(samples))]) for samples in (first, second)]
    energy = (energies[0][ends] - energies[0][starts]) * (energies[1][ends - lags] - energies[1][starts - lags])
    total_energy = energies[0][-1] * energies[1][-1]
    # an overlap that is nearly silent correlates with anything
    correlation = np.where(
        energy > 1e-4 * total_energy, np.abs(product[lags % size]) / np.sqrt(np.maximum(energy, 1e-30)), 0.0
    )
    return float(min(1.0, correlation.max(initial=0.0)))


def _equal_pairs(keys: NDArray[np.uint32], owners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of all pairs of equal keys of different owners.

    Args:
        keys: Landmark hashes of all clips `(landmarks,)`.
        owners: Number of the clip that each landmark belongs to `(landmarks,)`.
    Returns:
        Positions of the pairs' first and second members `(pairs,)`, the member with the lower owner first. If there are
        more than `MAX_EQUAL_PAIRS` pairs, the most common keys are ignored.
    """
    order = np.lexsort((owners, keys))
    edges = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(keys)]])
    lengths = np.diff(edges)
    firsts, seconds, total = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for length in np.unique(lengths[lengths > 1]).tolist():  # ascending: rare keys are the most informative
        starts = edges[:-1][lengths == length]
        total += len(starts) * length * (length - 1) // 2
        if total > MAX_EQUAL_PAIRS:
            break
        first_places, second_places = np.triu_indices(length, 1)
        firsts.append(order[starts[:, None] + first_places].ravel())
        seconds.append(order[starts[:, None] + second_places].ravel())
    return np.concatenate(firsts), np.concatenate(seconds)


def _spectrogram(waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
    """Level in dB relative to the loudest point `(frames, bins)`, up to `MAX_HZ`."""
    size, hop = num_samples(FRAME_S, sample_rate), num_samples(HOP_S, sample_rate)
    padded = np.pad(waveform, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][: len(waveform) // hop + 1]
    window = np.hanning(size).astype(np.float32)
    bins = int(MAX_HZ * FRAME_S) + 1
    spectrum = np.abs(np.fft.rfft(frames * window, axis=1)[:, :bins]).astype(np.float32)
    loudest = float(spectrum.max(initial=0.0))
    if loudest <= 1e-5 * size:
        return np.zeros((0, bins), np.float32)
    level: NDArray[np.float32] = 20 * np.log10(np.maximum(spectrum / loudest, 1e-6))
    return level


def _peaks(level: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames and bins of the local maxima of a spectrogram, ordered by time."""
    if not len(level):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    neighbourhood_max = _sliding_max(_sliding_max(level, PEAK_BINS, 1), PEAK_FRAMES, 0)
    peaks = np.argwhere((level >= neighbourhood_max) & (level > -PEAK_DB))
    return peaks[:, 0], peaks[:, 1]


def _sliding_max(values: NDArray[np.float32], reach: int, axis: int) -> NDArray[np.float32]:
    """Maximum over `reach` neighbours on either side along an axis."""
    width = 2 * reach + 1
    pad = [(0, 0), (0, 0)]
    pad[axis] = (reach, reach)
    maxima = np.moveaxis(np.pad(values, pad, constant_values=-np.inf), axis, 0)
    covered = 1
    while covered < width:  # doubling: the maximum over 2, 4, 8 ... neighbours
        step = min(covered, width - covered)
        maxima = np.maximum(maxima[: len(maxima) - step], maxima[step:])
        covered += step
    return np.moveaxis(maxima, 0, axis)


def _landmarks(times: NDArray[np.int64], bins: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes and start frames of all landmarks: pairs of peaks within reach of each other."""
    keys, starts = [], []
    pair_counts = np.zeros(len(times), np.int64)
    for ahead in range(1, 4 * FAN):
        if ahead >= len(times):
            break
        gap, jump = times[ahead:] - times[:-ahead], bins[ahead:] - bins[:-ahead]
        near = (gap > 0) & (gap <= REACH_FRAMES) & (np.abs(jump) <= REACH_BINS) & (pair_counts[:-ahead] < FAN)
        pair_counts[:-ahead] += near
        low, high = bins[:-ahead][near] // 2, bins[ahead:][near] // 2
        keys.append((low << 16 | high << 8 | gap[near] // 2).astype(np.uint64))
        starts.append(times[:-ahead][near])
    if not keys:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    mixed = np.concatenate(keys) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: spreads neighbours apart
    return (mixed >> np.uint64(32)), np.concatenate(starts)


def write(path: Path, fingerprints: Iterable[Fingerprint]) -> int:
    """Write fingerprints as JSON lines; returns their number."""
    return write_jsonl(
        path,
        (
            {
                "path": fingerprint.path,
                "sha256": fingerprint.sha256,
                "version": VERSION,
                "keys": fingerprint.sketch.keys.tolist(),
                "frames": fingerprint.sketch.frames.tolist(),
            }
            for fingerprint in fingerprints
        ),
    )


def is_fingerprint_file(path: Path) -> bool:
    """True if the first line of a file is a fingerprint (and not the row of a manifest)."""
    try:
        _, first = next(json_lines(path), (0, None))
    except DataError:
        return False
    return isinstance(first, dict) and {"sha256", "keys", "frames"} <= first.keys()


def read(path: Path) -> list[Fingerprint]:
    """Read a file of fingerprints.

    Raises:
        DataError: for a line that is no fingerprint, or a fingerprint of another version.
    """
    fingerprints = []
    for number, row in json_lines(path):
        try:
            version = row["version"]
            landmarks = Sketch(np.array(row["keys"], np.uint32), np.array(row["frames"], np.uint16))
            fingerprints.append(Fingerprint(str(row["path"]), str(row["sha256"]), landmarks))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(f"{path}:row {number}: is no fingerprint ({error}); write the file again") from error
        if version != VERSION:
            raise DataError(f"{path}:row {number}: is of version {version}, this is {VERSION}; write it again")
    return fingerprints
