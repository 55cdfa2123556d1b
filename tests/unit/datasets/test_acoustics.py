"""Measurements of constructed waveforms have the constructed values, and are None where they are not clear."""

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
PLAIN = acoustics.ClipAcoustics(2.0, 1.9, -20.0, 0.5, 200.0, 100.0, 2.0, 1)


def tone(hz, duration_s=1.0, gain=0.5, harmonics=1):
    t = np.arange(round(duration_s * RATE)) / RATE
    return (
        gain / harmonics * sum(np.sin(2 * np.pi * hz * k * t) for k in range(1, harmonics + 1) if hz * k < RATE / 2)
    ).astype(np.float32)


def silence(duration_s):
    return np.zeros(round(duration_s * RATE), np.float32)


def clicks(bpm, beats):
    waveform = silence(beats * 60 / bpm + 0.2)
    hit = (RNG.standard_normal(800) * np.exp(-np.arange(800) / 150)).astype(np.float32)
    for beat in range(beats):
        start = round((beat * 60 / bpm + 0.05) * RATE)
        waveform[start : start + 800] += 0.3 * hit
    return waveform


def test_loudness_of_the_reference_tone_of_the_standard():
    """BS.1770: a 997 Hz sine at full scale in one channel measures -3.01 LUFS."""
    t = np.arange(5 * 48000) / 48000
    assert acoustics.loudness(np.sin(2 * np.pi * 997 * t).astype(np.float32), 48000) == pytest.approx(-3.01, abs=0.02)
    assert acoustics.loudness(tone(997, 5, 1.0), RATE) == pytest.approx(-3.01, abs=0.05)


def test_loudness_follows_gain_and_ignores_silence():
    waveform = tone(500, 2)
    level = acoustics.loudness(waveform, RATE)
    assert acoustics.loudness(waveform / 10, RATE) == pytest.approx(level - 20, abs=0.01)
    assert acoustics.loudness(np.concatenate([waveform, silence(4)]), RATE) == pytest.approx(level, abs=0.7)
    assert acoustics.loudness(silence(1), RATE) == acoustics.FLOOR_DB == acoustics.loudness(silence(0), RATE)


def test_low_frequencies_have_less_weight_and_high_ones_more():
    flat = acoustics.loudness(tone(997, 2), RATE)
    assert acoustics.loudness(tone(30, 2), RATE) < flat - 5 and acoustics.loudness(tone(4000, 2), RATE) > flat + 2


@pytest.mark.parametrize("hz", [70, 110, 220, 441.3, 880, 1500])
@pytest.mark.parametrize("harmonics", [1, 6])
def test_pitch(hz, harmonics):
    pitch_hz = acoustics.pitch(tone(hz, 0.5, harmonics=harmonics), RATE)
    assert abs(12 * math.log2(pitch_hz / hz)) < 0.2


def test_unpitched_clips_have_no_pitch():
    assert acoustics.pitch(RNG.standard_normal(RATE).astype(np.float32) * 0.1, RATE) is None
    assert (
        acoustics.pitch(np.concatenate([tone(200, 0.5), tone(400, 0.5)]), RATE) is None
    )  # the pitch rises by an octave
    assert acoustics.pitch(tone(2800), RATE) is None  # too high to be distinguished from its octaves
    assert acoustics.pitch(silence(1), RATE) is None and acoustics.pitch(tone(200, 0.05), RATE) is None


@pytest.mark.parametrize("bpm", [60, 90, 120, 150])
def test_tempo_and_onsets(bpm):
    clip = acoustics.measure(clicks(bpm, 10), RATE)
    assert clip.tempo_bpm == pytest.approx(bpm, rel=0.03)
    assert clip.onsets_per_s * clip.sounding_s == pytest.approx(10, abs=0.5)
    assert clip.bursts == 10


def test_a_held_tone_has_no_tempo():
    assert acoustics.measure(tone(300, 3), RATE).tempo_bpm is None


def test_sounding_part_and_bursts():
    waveform = np.concatenate([silence(0.5), tone(400, 0.3), silence(0.4), tone(400, 0.3), silence(1)])
    clip = acoustics.measure(waveform, RATE)
    assert clip.duration_s == 2.5 and clip.sounding_s == pytest.approx(1.0, abs=0.03) and clip.bursts == 2
    start, end = acoustics.sounding(acoustics.frame_levels_db(waveform, RATE), RATE, len(waveform))
    assert start == pytest.approx(0.5 * RATE, abs=320) and end == pytest.approx(1.5 * RATE, abs=320)
    silent = acoustics.measure(silence(1), RATE)
    assert (silent.sounding_s, silent.bursts, silent.pitch_hz, silent.onsets_per_s) == (0, 0, None, 0)


@pytest.mark.parametrize("samples", [0, 1, 5, 160, 479])
def test_the_shortest_clips_are_measured(samples):
    assert acoustics.measure(np.full(samples, 0.1, np.float32), RATE).duration_s == round(samples / RATE, 3)


def test_comparisons_and_their_margins():
    def compare_plain_with(field, **changes):
        first, second = PLAIN, replace(PLAIN, **changes)
        assert acoustics.compare(field, first, second) == -acoustics.compare(field, second, first)
        return acoustics.compare(field, first, second)

    assert (
        compare_plain_with("loudness", loudness_lufs=-26.0) == 1
        and compare_plain_with("loudness", loudness_lufs=-25.9) == 0
    )
    assert (
        compare_plain_with("pitch", pitch_hz=200 * 2 ** (4 / 12)) == -1
        and compare_plain_with("pitch", pitch_hz=250.0) == 0
    )
    assert compare_plain_with("pitch", pitch_hz=None) == 0
    assert (
        compare_plain_with("duration", duration_s=1.2, sounding_s=1.1) == 1
        and compare_plain_with("duration", duration_s=1.9, sounding_s=1.1) == 0
    )
    assert compare_plain_with("duration", duration_s=1.2, sounding_s=1.6) == 0  # 1.9 s is not 1.5 times as long
    assert compare_plain_with("tempo", tempo_bpm=140.0, onsets_per_s=3.0) == -1
    assert (
        compare_plain_with("tempo", tempo_bpm=140.0, onsets_per_s=2.0) == 0
        and compare_plain_with("tempo", tempo_bpm=None) == 0
    )


def test_a_gain_changes_the_loudness_of_real_clips_and_nothing_else():
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()][::90]
    for row in rows:
        waveform = decode(STARTER / row["path"])
        loud, attenuated = acoustics.measure(waveform, RATE), acoustics.measure(waveform * np.float32(0.25), RATE)
        assert loud.loudness_lufs - attenuated.loudness_lufs == pytest.approx(12.04, abs=0.6), row["path"]
        assert (
            acoustics.compare("loudness", loud, attenuated) == 1
            and acoustics.compare("duration", loud, attenuated) == 0
        )
        assert loud.pitch_hz is None or loud.pitch_hz == pytest.approx(attenuated.pitch_hz, rel=0.01)
