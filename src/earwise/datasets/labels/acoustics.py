"""What the waveform itself says: loudness, pitch, duration, tempo, bursts; and when two clips differ beyond doubt.

Before `build/pairs.py` (comparisons) and `build/scenes.py` (which clips hold one event); measured on several processes
by `build/decode_pool.py`. Every fact has a margin: below it `compare` says 0 and no question is asked. Where two ways
of measuring may disagree (length of the file and of the sound in it, tempo and density of onsets) both must agree.
Sources: loudness is ITU-R BS.1770-4 with its two gates; pitch is McLeod's normalised square difference (ICMC 2005) and
tempo the autocorrelation of spectral flux, both written anew. Pure, numpy only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earwise.audio import num_samples, seconds
from earwise.types import Waveform

Array = NDArray[np.float64]
FIELDS = ("loudness", "pitch", "duration", "tempo")
# Margins, several times what a listener just notices: a question must not hang on the measurement.
LOUDNESS_MARGIN_LU = 6.0
PITCH_MARGIN_SEMITONES = 4.0
DURATION_RATIO, DURATION_MARGIN_S = 1.5, 0.5
TEMPO_RATIO = 1.3

FLOOR_DB = -120.0
HOP_S = 0.01
SOUNDING_DB = 40.0  # below the loudest frame: what is quieter does not count as sounding
BURST_DB, BURST_GAP_S = 20.0, 0.15  # bursts are parted by so long a time so far below the loudest frame
PITCH_FRAME_S, PITCH_HZ = 0.05, (60.0, 2000.0)  # what lies above is told from its octaves, and has no pitch here
CLARITY = 0.85  # of the normalised square difference: 1 is exactly periodic
KEY_MAXIMUM = 0.93  # the first peak so near the highest is the period, not its multiples (McLeod's constant k)
PITCHED_SHARE, PITCH_SPREAD_SEMITONES = 0.5, 2.0
TEMPO_BPM = (50.0, 220.0)
MIN_BEATS = 4
PULSE_CLARITY = 0.3
ONSET_GAP_S = 0.07


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured of one clip."""

    duration_s: float
    """Of the file."""
    sounding_s: float
    """From the first to the last frame within 40 dB of the loudest."""
    loudness_lufs: float
    """Gated loudness, LUFS; -120 for silence."""
    peak: float
    """Largest absolute sample, full scale 1."""
    pitch_hz: float | None
    """Median fundamental; None where less than half of the sound has one, or it moves by more than two semitones."""
    tempo_bpm: float | None
    """Of a pulse heard at least four times; None where there is none."""
    onsets_per_s: float
    """Onsets over the sounding time."""
    bursts: int
    """Stretches of sound parted by 0.15 s at 20 dB below the loudest frame: 1 is a single event."""


def measure(wave: Waveform, sample_rate: int) -> Facts:
    """Measure a clip.

    Args:
        wave: Mono float32 `(samples,)`.
        sample_rate: Hz.
    """
    levels = frame_levels_db(wave, sample_rate)
    start, end = sounding(levels, sample_rate, len(wave))
    sound = wave[start:end]
    sounding_s = seconds(len(sound), sample_rate)
    times, flux = onsets(sound, sample_rate)
    return Facts(
        duration_s=round(seconds(len(wave), sample_rate), 3),
        sounding_s=round(sounding_s, 3),
        loudness_lufs=round(loudness(wave, sample_rate), 2),
        peak=round(float(np.abs(wave).max(initial=0.0)), 5),
        pitch_hz=pitch(sound, sample_rate),
        tempo_bpm=tempo(flux) if len(times) >= MIN_BEATS else None,
        onsets_per_s=round(len(times) / sounding_s, 3) if sounding_s else 0.0,
        bursts=bursts(levels),
    )


def compare(field: str, first: Facts, second: Facts) -> int:
    """1 if the first clip has more of it (louder, higher, longer, faster), -1 if the second, 0 if nobody should ask.

    >>> plain = dict(peak=0.5, pitch_hz=None, tempo_bpm=None, onsets_per_s=0.0, bursts=1)
    >>> one, two = Facts(4.0, 3.9, -20.0, **plain), Facts(1.0, 0.9, -22.0, **plain)
    >>> compare("duration", one, two), compare("duration", two, one), compare("loudness", one, two)
    (1, -1, 0)
    """
    return _COMPARE[field](first, second)


def value(field: str, facts: Facts) -> float | None:
    """The number behind a comparison, for the row's `meta`."""
    found = {
        "loudness": facts.loudness_lufs,
        "pitch": facts.pitch_hz,
        "duration": facts.sounding_s,
        "tempo": facts.tempo_bpm,
    }
    return found[field]


def _by(difference: float, margin: float) -> int:
    return int(math.copysign(1, difference)) if abs(difference) >= margin - 1e-9 else 0


def _loudness(first: Facts, second: Facts) -> int:
    return _by(first.loudness_lufs - second.loudness_lufs, LOUDNESS_MARGIN_LU)


def _pitch(first: Facts, second: Facts) -> int:
    if first.pitch_hz is None or second.pitch_hz is None:
        return 0
    return _by(12 * math.log2(first.pitch_hz / second.pitch_hz), PITCH_MARGIN_SEMITONES)


def _duration(first: Facts, second: Facts) -> int:
    """The files and the sounds in them must differ alike: a listener may go by either."""

    def judged(one: float, other: float) -> int:
        if one <= 0 or other <= 0 or max(one, other) < DURATION_RATIO * min(one, other):
            return 0
        return _by(one - other, DURATION_MARGIN_S)

    by_file, by_sound = judged(first.duration_s, second.duration_s), judged(first.sounding_s, second.sounding_s)
    return by_file if by_file == by_sound else 0


def _tempo(first: Facts, second: Facts) -> int:
    """Tempo is known up to a factor of two, so the density of onsets must say the same."""
    if first.tempo_bpm is None or second.tempo_bpm is None or min(first.onsets_per_s, second.onsets_per_s) <= 0:
        return 0
    margin = math.log(TEMPO_RATIO)
    by_pulse = _by(math.log(first.tempo_bpm / second.tempo_bpm), margin)
    return by_pulse if by_pulse == _by(math.log(first.onsets_per_s / second.onsets_per_s), margin) else 0


_COMPARE = {"loudness": _loudness, "pitch": _pitch, "duration": _duration, "tempo": _tempo}


def frame_levels_db(wave: Waveform, sample_rate: int) -> Array:
    """Root mean square of 20 ms frames every 10 ms `(frames,)`, dB of full scale; at least one frame."""
    hop = num_samples(HOP_S, sample_rate)
    missing = -len(wave) % hop if len(wave) else hop
    power = np.square(np.pad(wave, (0, missing)), dtype=np.float64).reshape(-1, hop).mean(axis=1)
    if len(power) > 1:
        power = (power[:-1] + power[1:]) / 2
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))


def sounding(levels: Array, sample_rate: int, samples: int) -> tuple[int, int]:
    """First and last sample of the sound in a clip, from its frame levels; nothing of a silent clip.

    Returns:
        `(start, end)` with `0 <= start <= end <= samples`.
    """
    loud = np.flatnonzero(levels > max(float(levels.max()) - SOUNDING_DB, FLOOR_DB + SOUNDING_DB))
    if not len(loud):
        return 0, 0
    hop = num_samples(HOP_S, sample_rate)
    return min(int(loud[0]) * hop, samples), min((int(loud[-1]) + 2) * hop, samples)


def bursts(levels: Array) -> int:
    """How many stretches of sound there are; 0 for silence."""
    loud = np.flatnonzero(levels > max(float(levels.max()) - BURST_DB, FLOOR_DB + SOUNDING_DB))
    return int(np.sum(np.diff(loud) > BURST_GAP_S / HOP_S)) + 1 if len(loud) else 0


def loudness(wave: Waveform, sample_rate: int) -> float:
    """Gated loudness of a mono clip, LUFS (BS.1770-4: 400 ms blocks, gates at -70 LUFS and at 10 LU below the mean).

    The weighting is applied to each block's spectrum. A clip shorter than a block is one block.
    """
    size = min(len(wave), num_samples(0.4, sample_rate))
    if size == 0:
        return FLOOR_DB
    step = max(1, size // 4)
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[::step]
    weight = _weighting(np.fft.rfftfreq(size, 1 / sample_rate).astype(np.float64))
    fold = np.full(len(weight), 2.0)  # a one-sided spectrum counts every frequency twice but the first and the last
    fold[0] = 1.0
    if size % 2 == 0:
        fold[-1] = 1.0
    power = np.concatenate(
        [
            (np.square(np.abs(np.fft.rfft(part.astype(np.float64), axis=1))) * (weight * fold)).sum(axis=1) / size**2
            for part in (frames[at : at + 64] for at in range(0, len(frames), 64))
        ]
    )
    kept = power[_lufs(power) > -70.0]
    if len(kept):
        kept = kept[_lufs(kept) > float(_lufs(np.asarray(kept.mean()))) - 10.0]
    return max(FLOOR_DB, float(_lufs(np.asarray(kept.mean())))) if len(kept) else FLOOR_DB


def _lufs(power: Array) -> Array:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))


def _weighting(hz: Array) -> Array:
    """BS.1770's two filters as a gain in power: their published coefficients, for 48 kHz, at the frequencies `hz`."""
    z = np.exp(-2j * np.pi * np.minimum(hz, 24000.0) / 48000.0)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    high = (1 - 2 * z + z**2) / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    return np.square(np.abs(shelf * high))


def pitch(sound: Waveform, sample_rate: int) -> float | None:
    """Median fundamental in Hz, or None: see `Facts.pitch_hz`.

    Args:
        sound: The sounding part of a clip, mono `(samples,)`.
        sample_rate: Hz.
    """
    size, hop = num_samples(PITCH_FRAME_S, sample_rate), num_samples(4 * HOP_S, sample_rate)
    if len(sound) < 3 * size:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(sound, size)[::hop].astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(frames, 2 * size, axis=1)
    # at half samples: between whole ones the peak of a high, bright tone is missed
    product = 2 * np.fft.irfft(np.square(np.abs(spectrum)), 4 * size, axis=1)[:, : 2 * size]
    squares = np.square(frames)
    # energy of the two parts that overlap at each lag
    ends = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    starts = np.cumsum(squares, axis=1)
    energy = np.concatenate([ends[:, :1] + starts[:, -1:], ends[:, 1:] + starts[:, -2::-1]], axis=1)
    likeness = 2 * product / np.maximum(np.repeat(energy, 2, axis=1), 1e-12)
    rate = 2 * sample_rate
    shortest, longest = int(rate / PITCH_HZ[1]), min(int(rate / PITCH_HZ[0]), 2 * size - 2)
    found = [_period(row, shortest, longest) for row in likeness]
    heard = np.array([12 * math.log2(rate / lag) for lag in found if lag])
    if len(heard) < 3 or len(heard) < PITCHED_SHARE * len(found):
        return None
    low, middle, high = np.percentile(heard, (25, 50, 75))
    return round(2 ** (float(middle) / 12), 2) if high - low <= PITCH_SPREAD_SEMITONES else None


def _period(likeness: Array, shortest: int, longest: int) -> float | None:
    """Period of one frame, in lags; None where it has none."""
    inner = likeness[1:-1]
    below = np.flatnonzero(likeness <= 0)
    peaks = 1 + np.flatnonzero((inner > likeness[:-2]) & (inner >= likeness[2:]))
    peaks = peaks[(peaks <= longest) & (peaks > (below[0] if len(below) else len(likeness)))]
    if not len(peaks) or likeness[peaks].max() < CLARITY:
        return None
    at = int(peaks[np.argmax(likeness[peaks] >= KEY_MAXIMUM * likeness[peaks].max())])
    if at < shortest:
        return None
    left, here, right = likeness[at - 1 : at + 2]
    bend = left - 2 * here + right
    return at + (0.5 * (left - right) / bend if bend < 0 else 0.0)


def onsets(sound: Waveform, sample_rate: int) -> tuple[Array, Array]:
    """When sounds begin.

    Returns:
        Times in seconds `(onsets,)`, and the curve they were found in `(frames,)`: rise of the log spectrum per 10 ms.
    """
    hop, size = num_samples(HOP_S, sample_rate), num_samples(4 * HOP_S, sample_rate)
    before = 3  # frames of silence in front: a sound that begins at once begins too
    padded = np.pad(sound, (size // 2 + before * hop, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][: len(sound) // hop + 1 + before]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1))
    bands = np.add.reduceat(spectrum, _band_edges(spectrum.shape[1]), axis=1)
    level = np.log10(np.maximum(bands, 1e-4 * max(float(bands.max(initial=0.0)), 1e-6)))
    rise = np.maximum(level[2:] - level[:-2], 0).mean(axis=1) if len(level) > 2 else np.zeros(0)
    curve = np.concatenate([level[:1].mean(axis=1) * 0, rise, np.zeros(min(1, len(level)))]).astype(np.float64)
    gap = round(ONSET_GAP_S / HOP_S)
    if len(curve) < 3:
        return np.zeros(0), curve
    around = np.lib.stride_tricks.sliding_window_view(np.pad(curve, gap), 2 * gap + 1)
    threshold = np.maximum(around.mean(axis=1) + 0.08, 0.25 * float(np.percentile(curve, 99.5)))
    is_peak = (curve >= around.max(axis=1)) & (curve > threshold)
    return np.maximum(np.flatnonzero(is_peak) - before, 0).astype(np.float64) * HOP_S, curve


def _band_edges(bins: int) -> NDArray[np.int64]:
    return np.unique(np.geomspace(1, bins - 1, 24).astype(int))


def tempo(curve: Array) -> float | None:
    """Beats per minute of the clearest pulse in an onset curve (10 ms frames), None where there is none.

    The octave nearest to 110 is favoured, as listeners do.
    """
    slow, fast = (round(60 / bpm / HOP_S) for bpm in TEMPO_BPM)
    if len(curve) < 3 * fast:
        return None
    centred = curve - curve.mean()
    spectrum = np.fft.rfft(centred, 2 * len(curve))
    likeness = np.fft.irfft(np.square(np.abs(spectrum)))[: len(curve)]
    if likeness[0] <= 0:
        return None
    lags = np.arange(fast, min(slow, len(curve) // 2) + 1)
    clear = likeness[lags] / likeness[0] * len(curve) / (len(curve) - lags)
    favour = np.exp(-0.5 * np.square(np.log2(60 / (lags * HOP_S) / 110) / 1.0))
    if not len(lags) or clear.max() < PULSE_CLARITY:
        return None
    at = int(np.argmax(clear * favour))
    return round(60 / (float(lags[at]) * HOP_S), 1) if clear[at] >= PULSE_CLARITY else None


def as_dict(facts: Mapping[str, Facts]) -> dict[str, dict[str, float | int | None]]:
    """Plain values, for a log."""
    return {path: {name: getattr(one, name) for name in Facts.__dataclass_fields__} for path, one in facts.items()}
