"""Measures loudness, pitch, duration, tempo and bursts of a clip, and decides when two clips differ beyond doubt.

Used by `pair_questions.py` (comparisons) and `scenes.py` (which clips contain a single event); clips are measured on
several processes by `scan/clip_stats.py`. Every measurement has a margin: if two clips differ by less, `compare`
returns 0 and no question is asked. Two measurements that may disagree (length of the file and of the sound in it, tempo
and density of onsets) must both differ. Sources: loudness is ITU-R BS.1770-4 with its two gates; pitch is McLeod's
normalised square difference (ICMC 2005); tempo is the autocorrelation of the spectral flux; all are own
implementations. Pure functions, numpy only.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earwise.audio import num_samples, seconds
from earwise.types import Waveform

Array = NDArray[np.float64]
FIELDS = ("loudness", "pitch", "duration", "tempo")
# Margins are several times the just noticeable difference, so that no answer depends on a measurement error.
LOUDNESS_MARGIN_LU = 6.0
PITCH_MARGIN_SEMITONES = 4.0
DURATION_RATIO, DURATION_MARGIN_S = 1.5, 0.5
TEMPO_RATIO = 1.3

FLOOR_DB = -120.0
HOP_S = 0.01
SOUNDING_DB = 40.0  # frames that are further below the loudest frame count as silence
BURST_DB, BURST_GAP_S = 20.0, 0.15  # bursts are separated by 0.15 s that is 20 dB below the loudest frame
PITCH_FRAME_S, PITCH_HZ = 0.05, (60.0, 2000.0)  # higher tones cannot be distinguished from their octaves
CLARITY = 0.85  # minimum of the normalised autocorrelation at the period; 1 is exactly periodic
FIRST_PEAK_RATIO = 0.93  # the first peak above this share of the highest is the period (McLeod's constant k)
PITCHED_SHARE, PITCH_SPREAD_SEMITONES = 0.5, 2.0
TEMPO_BPM = (50.0, 220.0)
MIN_BEATS = 4
PULSE_CLARITY = 0.3
ONSET_GAP_S = 0.07


@dataclass(frozen=True, slots=True)
class ClipAcoustics:
    """Acoustic measurements of one clip."""

    duration_s: float
    """Length of the file."""
    sounding_s: float
    """Length from the first to the last frame within 40 dB of the loudest."""
    loudness_lufs: float
    """Gated loudness, LUFS; -120 for silence."""
    peak: float
    """Largest absolute sample, full scale 1."""
    pitch_hz: float | None
    """Median fundamental frequency; None if less than half of the clip is pitched or the pitch varies by more than two
    semitones."""
    tempo_bpm: float | None
    """Tempo of a pulse with at least four onsets; None if there is no pulse."""
    onsets_per_s: float
    """Number of onsets divided by `sounding_s`."""
    bursts: int
    """Number of stretches of sound separated by 0.15 s at 20 dB below the loudest frame; 1 is a single event."""


def measure(waveform: Waveform, sample_rate: int) -> ClipAcoustics:
    """Measure a clip.

    Args:
        waveform: Mono float32 `(samples,)`.
        sample_rate: Sample rate in Hz.
    """
    levels = frame_levels_db(waveform, sample_rate)
    start, end = sounding(levels, sample_rate, len(waveform))
    sound = waveform[start:end]
    sounding_s = seconds(len(sound), sample_rate)
    times, flux = onsets(sound, sample_rate)
    return ClipAcoustics(
        duration_s=round(seconds(len(waveform), sample_rate), 3),
        sounding_s=round(sounding_s, 3),
        loudness_lufs=round(loudness(waveform, sample_rate), 2),
        peak=round(float(np.abs(waveform).max(initial=0.0)), 5),
        pitch_hz=pitch(sound, sample_rate),
        tempo_bpm=tempo(flux) if len(times) >= MIN_BEATS else None,
        onsets_per_s=round(len(times) / sounding_s, 3) if sounding_s else 0.0,
        bursts=bursts(levels),
    )


def compare(field: str, first: ClipAcoustics, second: ClipAcoustics) -> int:
    """Compare two clips.

    Args:
        field: Quantity to compare, one of `FIELDS`.
        first: Measurements of the first clip.
        second: Measurements of the second clip.
    Returns:
        1 if the first clip is louder, higher, longer or faster, -1 if the second is, 0 if the difference is too small.

    >>> plain = dict(peak=0.5, pitch_hz=None, tempo_bpm=None, onsets_per_s=0.0, bursts=1)
    >>> long, short = ClipAcoustics(4.0, 3.9, -20.0, **plain), ClipAcoustics(1.0, 0.9, -22.0, **plain)
    >>> compare("duration", long, short), compare("duration", short, long), compare("loudness", long, short)
    (1, -1, 0)
    """
    return _COMPARE[field](first, second)


def value(field: str, acoustics: ClipAcoustics) -> float | None:
    """The measured value of a quantity that `compare` compares; None if the clip has none."""
    values = {
        "loudness": acoustics.loudness_lufs,
        "pitch": acoustics.pitch_hz,
        "duration": acoustics.sounding_s,
        "tempo": acoustics.tempo_bpm,
    }
    return values[field]


def _sign_beyond(difference: float, margin: float) -> int:
    """Sign of a difference, or 0 if it is within the margin."""
    return int(math.copysign(1, difference)) if abs(difference) >= margin - 1e-9 else 0


def _loudness(first: ClipAcoustics, second: ClipAcoustics) -> int:
    return _sign_beyond(first.loudness_lufs - second.loudness_lufs, LOUDNESS_MARGIN_LU)


def _pitch(first: ClipAcoustics, second: ClipAcoustics) -> int:
    if first.pitch_hz is None or second.pitch_hz is None:
        return 0
    return _sign_beyond(12 * math.log2(first.pitch_hz / second.pitch_hz), PITCH_MARGIN_SEMITONES)


def _duration(first: ClipAcoustics, second: ClipAcoustics) -> int:
    """Compare the lengths of the files and of the sounds in them, which must differ in the same direction."""

    def longer(first_s: float, second_s: float) -> int:
        if first_s <= 0 or second_s <= 0 or max(first_s, second_s) < DURATION_RATIO * min(first_s, second_s):
            return 0
        return _sign_beyond(first_s - second_s, DURATION_MARGIN_S)

    by_file, by_sound = longer(first.duration_s, second.duration_s), longer(first.sounding_s, second.sounding_s)
    return by_file if by_file == by_sound else 0


def _tempo(first: ClipAcoustics, second: ClipAcoustics) -> int:
    """The measured tempo may be off by a factor of two, so the density of onsets must differ in the same direction."""
    if first.tempo_bpm is None or second.tempo_bpm is None or min(first.onsets_per_s, second.onsets_per_s) <= 0:
        return 0
    margin = math.log(TEMPO_RATIO)
    by_pulse = _sign_beyond(math.log(first.tempo_bpm / second.tempo_bpm), margin)
    return by_pulse if by_pulse == _sign_beyond(math.log(first.onsets_per_s / second.onsets_per_s), margin) else 0


_COMPARE = {"loudness": _loudness, "pitch": _pitch, "duration": _duration, "tempo": _tempo}


def frame_levels_db(waveform: Waveform, sample_rate: int) -> Array:
    """Root mean square of 20 ms frames every 10 ms `(frames,)`, in dB of full scale; at least one frame."""
    hop = num_samples(HOP_S, sample_rate)
    padding = -len(waveform) % hop if len(waveform) else hop
    power = np.square(np.pad(waveform, (0, padding)), dtype=np.float64).reshape(-1, hop).mean(axis=1)
    if len(power) > 1:
        power = (power[:-1] + power[1:]) / 2
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))


def sounding(levels: Array, sample_rate: int, samples: int) -> tuple[int, int]:
    """Part of a clip that is not silence at its beginning or end.

    Args:
        levels: Frame levels of the clip (`frame_levels_db`).
        sample_rate: Sample rate in Hz.
        samples: Number of samples of the clip.
    Returns:
        `(start, end)` in samples with `0 <= start <= end <= samples`; `(0, 0)` for a silent clip.
    """
    loud = np.flatnonzero(levels > max(float(levels.max()) - SOUNDING_DB, FLOOR_DB + SOUNDING_DB))
    if not len(loud):
        return 0, 0
    hop = num_samples(HOP_S, sample_rate)
    return min(int(loud[0]) * hop, samples), min((int(loud[-1]) + 2) * hop, samples)


def bursts(levels: Array) -> int:
    """Number of stretches of sound (see `ClipAcoustics.bursts`); 0 for silence."""
    loud = np.flatnonzero(levels > max(float(levels.max()) - BURST_DB, FLOOR_DB + SOUNDING_DB))
    return int(np.sum(np.diff(loud) > BURST_GAP_S / HOP_S)) + 1 if len(loud) else 0


def loudness(waveform: Waveform, sample_rate: int) -> float:
    """Gated loudness of a mono clip, LUFS (BS.1770-4: 400 ms blocks, gates at -70 LUFS and at 10 LU below the mean).

    The frequency weighting is applied to the spectrum of each block. A clip shorter than a block is one block.
    """
    size = min(len(waveform), num_samples(0.4, sample_rate))
    if size == 0:
        return FLOOR_DB
    step = max(1, size // 4)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, size)[::step]
    weight = _weighting(np.fft.rfftfreq(size, 1 / sample_rate).astype(np.float64))
    fold = np.full(
        len(weight), 2.0
    )  # in a one-sided spectrum every frequency except the first and the last counts twice
    fold[0] = 1.0
    if size % 2 == 0:
        fold[-1] = 1.0
    power = np.concatenate(
        [
            (np.square(np.abs(np.fft.rfft(part.astype(np.float64), axis=1))) * (weight * fold)).sum(axis=1) / size**2
            for part in (frames[start : start + 64] for start in range(0, len(frames), 64))
        ]
    )
    gated = power[_lufs(power) > -70.0]
    if len(gated):
        gated = gated[_lufs(gated) > float(_lufs(np.asarray(gated.mean()))) - 10.0]
    return max(FLOOR_DB, float(_lufs(np.asarray(gated.mean())))) if len(gated) else FLOOR_DB


def _lufs(power: Array) -> Array:
    """Loudness of a weighted mean power, LUFS."""
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))


def _weighting(hz: Array) -> Array:
    """Power gain of the filters of BS.1770 at the frequencies `hz`, from the published coefficients for 48 kHz."""
    z = np.exp(-2j * np.pi * np.minimum(hz, 24000.0) / 48000.0)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    high = (1 - 2 * z + z**2) / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    return np.square(np.abs(shelf * high))


def pitch(sound: Waveform, sample_rate: int) -> float | None:
    """Median fundamental frequency in Hz, or None (see `ClipAcoustics.pitch_hz`).

    Args:
        sound: Clip without silence at its ends, mono `(samples,)`.
        sample_rate: Sample rate in Hz.
    """
    size, hop = num_samples(PITCH_FRAME_S, sample_rate), num_samples(4 * HOP_S, sample_rate)
    if len(sound) < 3 * size:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(sound, size)[::hop].astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(frames, 2 * size, axis=1)
    # lags of half samples: with whole samples the peak of a high tone with many harmonics can be missed
    product = 2 * np.fft.irfft(np.square(np.abs(spectrum)), 4 * size, axis=1)[:, : 2 * size]
    squares = np.square(frames)
    # energy of the two overlapping parts at each lag
    ends = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    starts = np.cumsum(squares, axis=1)
    energy = np.concatenate([ends[:, :1] + starts[:, -1:], ends[:, 1:] + starts[:, -2::-1]], axis=1)
    similarity = 2 * product / np.maximum(np.repeat(energy, 2, axis=1), 1e-12)
    rate = 2 * sample_rate
    shortest, longest = int(rate / PITCH_HZ[1]), min(int(rate / PITCH_HZ[0]), 2 * size - 2)
    periods = [_period(row, shortest, longest) for row in similarity]
    semitones = np.array([12 * math.log2(rate / period) for period in periods if period])
    if len(semitones) < 3 or len(semitones) < PITCHED_SHARE * len(periods):
        return None
    low, middle, high = np.percentile(semitones, (25, 50, 75))
    return round(2 ** (float(middle) / 12), 2) if high - low <= PITCH_SPREAD_SEMITONES else None


def _period(similarity: Array, shortest: int, longest: int) -> float | None:
    """Period of one frame, in lags; None if the frame is not periodic.

    Args:
        similarity: Normalised autocorrelation of the frame `(lags,)`.
        shortest: Shortest period, in lags.
        longest: Longest period, in lags.
    """
    inner = similarity[1:-1]
    below = np.flatnonzero(similarity <= 0)
    peaks = 1 + np.flatnonzero((inner > similarity[:-2]) & (inner >= similarity[2:]))
    peaks = peaks[(peaks <= longest) & (peaks > (below[0] if len(below) else len(similarity)))]
    if not len(peaks) or similarity[peaks].max() < CLARITY:
        return None
    peak = int(peaks[np.argmax(similarity[peaks] >= FIRST_PEAK_RATIO * similarity[peaks].max())])
    if peak < shortest:
        return None
    before, centre, after = similarity[peak - 1 : peak + 2]  # parabolic interpolation of the peak
    curvature = before - 2 * centre + after
    return peak + (0.5 * (before - after) / curvature if curvature < 0 else 0.0)


def onsets(sound: Waveform, sample_rate: int) -> tuple[Array, Array]:
    """Detect the onsets of a clip.

    Args:
        sound: Clip without silence at its ends, mono `(samples,)`.
        sample_rate: Sample rate in Hz.
    Returns:
        Times in seconds `(onsets,)`, and the onset curve `(frames,)`: increase of the log spectrum per 10 ms.
    """
    hop, size = num_samples(HOP_S, sample_rate), num_samples(4 * HOP_S, sample_rate)
    lead_in = 3  # frames of silence before the clip, so that a sound that starts immediately has an onset
    padded = np.pad(sound, (size // 2 + lead_in * hop, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][: len(sound) // hop + 1 + lead_in]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1))
    bands = np.add.reduceat(spectrum, _band_edges(spectrum.shape[1]), axis=1)
    level = np.log10(np.maximum(bands, 1e-4 * max(float(bands.max(initial=0.0)), 1e-6)))
    increase = np.maximum(level[2:] - level[:-2], 0).mean(axis=1) if len(level) > 2 else np.zeros(0)
    curve = np.concatenate([level[:1].mean(axis=1) * 0, increase, np.zeros(min(1, len(level)))]).astype(np.float64)
    gap = round(ONSET_GAP_S / HOP_S)
    if len(curve) < 3:
        return np.zeros(0), curve
    neighbourhood = np.lib.stride_tricks.sliding_window_view(np.pad(curve, gap), 2 * gap + 1)
    threshold = np.maximum(neighbourhood.mean(axis=1) + 0.08, 0.25 * float(np.percentile(curve, 99.5)))
    is_peak = (curve >= neighbourhood.max(axis=1)) & (curve > threshold)
    return np.maximum(np.flatnonzero(is_peak) - lead_in, 0).astype(np.float64) * HOP_S, curve


def _band_edges(bins: int) -> NDArray[np.int64]:
    """First bins of logarithmically spaced frequency bands."""
    return np.unique(np.geomspace(1, bins - 1, 24).astype(int))


def tempo(curve: Array) -> float | None:
    """Beats per minute of the clearest pulse in an onset curve (10 ms frames); None if there is no clear pulse.

    Among tempos that differ by a factor of two, the tempo nearest to 110 is preferred, as by human listeners.
    """
    longest, shortest = (round(60 / bpm / HOP_S) for bpm in TEMPO_BPM)
    if len(curve) < 3 * shortest:
        return None
    centred = curve - curve.mean()
    spectrum = np.fft.rfft(centred, 2 * len(curve))
    similarity = np.fft.irfft(np.square(np.abs(spectrum)))[: len(curve)]
    if similarity[0] <= 0:
        return None
    lags = np.arange(shortest, min(longest, len(curve) // 2) + 1)
    clarity = similarity[lags] / similarity[0] * len(curve) / (len(curve) - lags)
    preference = np.exp(-0.5 * np.square(np.log2(60 / (lags * HOP_S) / 110) / 1.0))
    if not len(lags) or clarity.max() < PULSE_CLARITY:
        return None
    best = int(np.argmax(clarity * preference))
    return round(60 / (float(lags[best]) * HOP_S), 1) if clarity[best] >= PULSE_CLARITY else None
