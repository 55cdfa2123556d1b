"""Near copies of clips are found by their fingerprints, in a data set and against a benchmark."""

import io
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import soundfile
import soxr

from earwise.audio import decode
from earwise.data.manifest_path import STARTER
from earwise.datasets.checks import fingerprint
from earwise.datasets.checks.audio_checks import fingerprint_clips
from earwise.datasets.checks.check_examples import check_examples
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn


def make_example(number, audio, split="train"):
    turns = (Turn("user", (Audio(audio), Text("What?"))),)
    return Example(f"q{number}", turns, ("a",), ("a", "b", "c", "d"), licence="CC0", group=f"g{number}", split=split)


def encode(wave, container, codec, rate=16000):
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, format=container, subtype=codec) as sound:
        for start in range(0, len(wave), 8000):
            sound.write(np.clip(wave[start : start + 8000], -1, 1))
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


CHANGES = {
    "gain": lambda wave: wave * np.float32(0.2),
    "mp3": lambda wave: encode(wave, "MP3", "MPEG_LAYER_III"),
    "vorbis": lambda wave: encode(wave, "OGG", "VORBIS"),
    "resampled": lambda wave: soxr.resample(soxr.resample(wave, 16000, 11025), 11025, 16000),
    "trimmed": lambda wave: wave[len(wave) // 10 + 77 : -len(wave) // 10],
    "all changes": lambda wave: encode(wave[len(wave) // 8 + 99 : -len(wave) // 10] * 0.5, "MP3", "MPEG_LAYER_III"),
}


@cache
def real_clips():
    """Every 24th bundled clip that is longer than 0.6 s: speech, instruments, noises."""
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    waveforms = [decode(STARTER / row["path"])[: 16000 * 5] for row in rows[::24]]
    return [wave for wave in waveforms if len(wave) > 9600]


@pytest.mark.parametrize("change", CHANGES)
def test_near_copies_of_real_clips_are_found_without_false_positives(change):
    waveforms = real_clips()
    changed = [CHANGES[change](wave) for wave in waveforms]
    sketches = [fingerprint.sketch(wave) for wave in (*waveforms, *changed)]
    matches = {
        (match.first, match.second - len(waveforms))
        for match in fingerprint.find_near_copies(sketches, n_data=len(waveforms))
    }
    pairs = {(number, number) for number in range(len(waveforms))}
    assert len(waveforms) >= 15 and len(matches & pairs) >= (
        0.85 if change in ("trimmed", "all changes") else 0.95
    ) * len(pairs)
    assert len(matches - pairs) == 0
    for number, _ in matches:
        assert fingerprint.waveform_similarity(waveforms[number], changed[number]) > fingerprint.MIN_SIMILARITY
    assert fingerprint.waveform_similarity(waveforms[0], waveforms[1]) < 0.5


def test_a_sketch_is_small_and_silence_has_none():
    assert max(len(fingerprint.sketch(wave).keys) for wave in real_clips()) == fingerprint.SKETCH_SIZE
    for wave in (np.zeros(16000, np.float32), np.zeros(0, np.float32), np.full(3, 0.5, np.float32)):
        assert len(fingerprint.sketch(wave).keys) == 0
    assert (
        fingerprint.find_near_copies([]) == []
        and fingerprint.find_near_copies([fingerprint.sketch(np.zeros(9, np.float32))]) == []
    )


def test_near_copies_across_splits_and_of_a_benchmark(tmp_path):
    clip, other_clip = max(real_clips(), key=len), real_clips()[1]
    soundfile.write(tmp_path / "1.wav", clip, 16000)
    soundfile.write(tmp_path / "2.flac", 0.4 * clip[2000:], 16000)
    soundfile.write(tmp_path / "3.wav", other_clip, 16000)
    examples = [
        make_example(1, "1.wav"),
        make_example(2, "2.flac", split="val"),
        make_example(3, "3.wav"),
    ]
    examples = [replace(row, root=tmp_path) for row in examples]
    report = check_examples(examples)
    assert len(report["near_copies"]) == 1 and "1.wav (train) and" in report["near_copies"][0]
    assert report["problems"] == [f"near copy: {report['near_copies'][0]}; keep the copies in one split"]
    assert report["sounds"]["clips"] == 3 and sum(report["sounds"]["duration_s"]["counts"]) == 3
    fingerprints = fingerprint_clips([tmp_path / "1.wav"])
    fingerprint.write(tmp_path / "b.prints", fingerprints)
    assert fingerprint.is_fingerprint_file(tmp_path / "b.prints") and not fingerprint.is_fingerprint_file(
        STARTER / "val.jsonl"
    )
    read = fingerprint.read(tmp_path / "b.prints")
    assert read[0].sha256 == fingerprints[0].sha256 and np.array_equal(read[0].sketch.keys, fingerprints[0].sketch.keys)
    matches = check_examples(examples[:1] + examples[2:], benchmark_clips=read)["benchmark"]
    assert matches == [f"{tmp_path / '1.wav'} is {tmp_path / '1.wav'}"]
    matches = check_examples(examples[1:], benchmark_clips=read)["benchmark"]
    assert len(matches) == 1 and "2.flac sounds like" in matches[0]
    (tmp_path / "b.prints").write_text('{"sha256": "x", "keys": [], "frames": []}\n')
    with pytest.raises(DataError, match="row 1: is no fingerprint"):
        fingerprint.read(tmp_path / "b.prints")
