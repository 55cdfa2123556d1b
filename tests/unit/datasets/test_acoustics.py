"""What is measured of a waveform is what was put into it; where it is not clear, nothing is said."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import earwise
from earwise.audio import decode
from earwise.datasets.labels import acoustics

RATE = 16000
STARTER = Path(earwise.__file__).parent / "assets" / "starter"
RNG = np.random.default_rng(0)
PLAIN = acoustics.Facts(2.0, 1.9, -20.0, 0.5, 200.0, 100.0, 2.0, 1)


def tone(hz, duration_s=1.0, gain=0.5, harmonics=1):
    t = np.arange(round(duration_s * RATE)) / RATE
    return (
        gain / harmonics * sum(np.sin(2 * np.pi * hz * k * t) for k in range(1, harmonics + 1) if hz * k < RATE / 2)
    ).astype(np.float32)


def quiet(duration_s):
    return np.zeros(round(duration_s * RATE), np.float32)


def clicks(bpm, beats):
    wave = quiet(beats * 60 / bpm + 0.2)
    hit = (RNG.standard_normal(800) * np.exp(-np.arange(800) / 150)).astype(np.float32)
    for beat in range(beats):
        at = round((beat * 60 / bpm + 0.05) * RATE)
        wave[at : at + 800] += 0.3 * hit
    return wave


def test_loudness_of_the_standards_reference_tone():
    """BS.1770: a 997 Hz sine at full scale in one channel measures -3.01 LUFS."""
    t = np.arange(5 * 48000) / 48000
    assert acoustics.loudness(np.sin(2 * np.pi * 997 * t).astype(np.float32), 48000) == pytest.approx(-3.01, abs=0.02)
    assert acoustics.loudness(tone(997, 5, 1.0), RATE) == pytest.approx(-3.01, abs=0.05)


def test_loudness_follows_gain_and_passes_over_silence():
    wave = tone(500, 2)
    level = acoustics.loudness(wave, RATE)
    assert acoustics.loudness(wave / 10, RATE) == pytest.approx(level - 20, abs=0.01)
    assert acoustics.loudness(np.concatenate([wave, quiet(4)]), RATE) == pytest.approx(level, abs=0.7)
    assert acoustics.loudness(quiet(1), RATE) == acoustics.FLOOR_DB == acoustics.loudness(quiet(0), RATE)


def test_low_and_high_frequencies_weigh_less_and_more():
    flat = acoustics.loudness(tone(997, 2), RATE)
    assert acoustics.loudness(tone(30, 2), RATE) < flat - 5 and acoustics.loudness(tone(4000, 2), RATE) > flat + 2


@pytest.mark.parametrize("hz", [70, 110, 220, 441.3, 880, 1500])
@pytest.mark.parametrize("harmonics", [1, 6])
def test_pitch(hz, harmonics):
    found = acoustics.pitch(tone(hz, 0.5, harmonics=harmonics), RATE)
    assert abs(12 * math.log2(found / hz)) < 0.2


def test_no_pitch_where_there_is_none():
    assert acoustics.pitch(RNG.standard_normal(RATE).astype(np.float32) * 0.1, RATE) is None
    assert acoustics.pitch(np.concatenate([tone(200, 0.5), tone(400, 0.5)]), RATE) is None  # it moves by an octave
    assert acoustics.pitch(tone(2800), RATE) is None  # above what can be told from its octaves
    assert acoustics.pitch(quiet(1), RATE) is None and acoustics.pitch(tone(200, 0.05), RATE) is None


@pytest.mark.parametrize("bpm", [60, 90, 120, 150])
def test_tempo_and_onsets(bpm):
    facts = acoustics.measure(clicks(bpm, 10), RATE)
    assert facts.tempo_bpm == pytest.approx(bpm, rel=0.03)
    assert facts.onsets_per_s * facts.sounding_s == pytest.approx(10, abs=0.5)
    assert facts.bursts == 10


def test_a_held_tone_has_no_tempo():
    assert acoustics.measure(tone(300, 3), RATE).tempo_bpm is None


def test_sounding_part_and_bursts():
    wave = np.concatenate([quiet(0.5), tone(400, 0.3), quiet(0.4), tone(400, 0.3), quiet(1)])
    facts = acoustics.measure(wave, RATE)
    assert facts.duration_s == 2.5 and facts.sounding_s == pytest.approx(1.0, abs=0.03) and facts.bursts == 2
    start, end = acoustics.sounding(acoustics.frame_levels_db(wave, RATE), RATE, len(wave))
    assert start == pytest.approx(0.5 * RATE, abs=320) and end == pytest.approx(1.5 * RATE, abs=320)
    silent = acoustics.measure(quiet(1), RATE)
    assert (silent.sounding_s, silent.bursts, silent.pitch_hz, silent.onsets_per_s) == (0, 0, None, 0)


@pytest.mark.parametrize("samples", [0, 1, 5, 160, 479])
def test_the_shortest_clips_are_measured(samples):
    assert acoustics.measure(np.full(samples, 0.1, np.float32), RATE).duration_s == round(samples / RATE, 3)


def test_comparisons_and_their_margins():
    def ask(field, **other):
        first, second = PLAIN, replace(PLAIN, **other)
        assert acoustics.compare(field, first, second) == -acoustics.compare(field, second, first)
        return acoustics.compare(field, first, second)

    assert ask("loudness", loudness_lufs=-26.0) == 1 and ask("loudness", loudness_lufs=-25.9) == 0
    assert ask("pitch", pitch_hz=200 * 2 ** (4 / 12)) == -1 and ask("pitch", pitch_hz=250.0) == 0
    assert ask("pitch", pitch_hz=None) == 0
    assert ask("duration", duration_s=1.2, sounding_s=1.1) == 1 and ask("duration", duration_s=1.9, sounding_s=1.1) == 0
    assert ask("duration", duration_s=1.2, sounding_s=1.6) == 0  # 1.9 is not half as long again
    assert ask("tempo", tempo_bpm=140.0, onsets_per_s=3.0) == -1
    assert ask("tempo", tempo_bpm=140.0, onsets_per_s=2.0) == 0 and ask("tempo", tempo_bpm=None) == 0


def test_a_clip_half_as_loud_played_back_is_quieter_whatever_the_clip():
    """On real clips: gain changes loudness by itself and nothing else."""
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()][::90]
    for row in rows:
        wave = decode(STARTER / row["path"])
        loud, soft = acoustics.measure(wave, RATE), acoustics.measure(wave * np.float32(0.25), RATE)
        assert loud.loudness_lufs - soft.loudness_lufs == pytest.approx(12.04, abs=0.6), row["path"]
        assert acoustics.compare("loudness", loud, soft) == 1 and acoustics.compare("duration", loud, soft) == 0
        assert loud.pitch_hz is None or loud.pitch_hz == pytest.approx(soft.pitch_hz, rel=0.01)
