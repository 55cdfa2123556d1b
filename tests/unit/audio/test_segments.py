"""A segment of a file: the samples of the part cut out of it, its own hash, kept by all that writes rows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwise import audio
from earwise.data import manifest
from earwise.data.index import open_rows
from earwise.data.parquet import from_parquet, to_parquet
from earwise.data.webdataset import from_webdataset, to_webdataset
from earwise.engine.clip_reader import ClipReader
from earwise.errors import AudioError, DataError
from earwise.types import Audio, AudioClip, Example, Text, Turn

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * 44100, 2)).astype(np.float32)


def row(path: str, start: float | None = None, end: float | None = None, name: str = "a") -> Example:
    return Example(name, (Turn("user", (Audio(path, start, end), Text("What is it?"))),), answer=("rain",))


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 16000), ("wav", 44100), ("flac", 22050), ("aiff", 8000)])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.7503, 1.25), (1.0, None), (0.5, 0.5001)])
def test_a_segment_is_the_part_cut_out_of_the_file(
    tmp_path: Path, suffix: str, rate: int, start: float, end: float | None
) -> None:
    samples = NOISE[: 2 * rate]
    first, last = round(start * rate), 2 * rate if end is None else round(end * rate)
    soundfile.write(tmp_path / f"whole.{suffix}", samples, rate, subtype="PCM_16")
    soundfile.write(tmp_path / f"part.{suffix}", samples[first:last], rate, subtype="PCM_16")
    segment = audio.decode(AudioClip(tmp_path / f"whole.{suffix}", start, end))
    np.testing.assert_array_equal(segment, audio.decode(tmp_path / f"part.{suffix}"))
    assert audio.clip_duration(AudioClip(tmp_path / f"whole.{suffix}", start, end)) == pytest.approx(
        (2.0 if end is None else end) - start
    )


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_a_segment_of_a_lossy_file_is_a_slice_of_its_samples(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", NOISE[:32000, 0], 16000)
    whole = audio.decode(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(audio.decode(AudioClip(tmp_path / f"a.{suffix}", 0.25, 1.5)), whole[4000:24000])


def test_a_segment_across_joined_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", NOISE[:16000], 16000)
    soundfile.write(tmp_path / "b.flac", NOISE[16000:32000], 16000)
    (tmp_path / "ab.flac").write_bytes((tmp_path / "a.flac").read_bytes() + (tmp_path / "b.flac").read_bytes())
    whole = audio.decode(tmp_path / "ab.flac")
    assert len(whole) == 32000
    for start, end in ((0.5, 1.5), (1.25, None), (0.0, 0.5)):
        segment = audio.decode(AudioClip(tmp_path / "ab.flac", start, end))
        np.testing.assert_array_equal(segment, whole[round(start * 16000) : end and round(end * 16000)])


def test_policies_count_the_segment_and_not_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE[:48000], 16000)
    reader = ClipReader(16000, 1.0)
    assert len(reader.read(AudioClip(tmp_path / "a.wav", 1.0, 2.0)).waveform) == 16000
    with pytest.raises(AudioError, match=r"a\.wav \[1-2\.5 s\]: lasts 1\.50 s, the longest allowed is 1 s"):
        reader.read(AudioClip(tmp_path / "a.wav", 1.0, 2.5))
    truncating = ClipReader(16000, 1.0, long_audio="truncate")
    assert truncating.read(AudioClip(tmp_path / "a.wav", 1.0, 2.5)).is_long
    assert not truncating.read(AudioClip(tmp_path / "a.wav", 2.0)).is_long
    assert truncating.is_long(AudioClip(tmp_path / "a.wav", 0.5)) and not reader.is_long(
        AudioClip(tmp_path / "a.wav", 2.5)
    )


def test_hashes_of_segments_differ(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE[:16000], 16000)
    clips = [AudioClip(tmp_path / "a.wav", *times) for times in ((), (0.5,), (0.0, 0.5), (0.5, 0.75))]
    assert audio.clip_sha256(clips[0]) == audio.audio_sha256(tmp_path / "a.wav")
    assert len({audio.clip_sha256(clip) for clip in clips}) == 4


@pytest.mark.parametrize(("start", "end"), [(2.0, None), (0.0, 2.1), (5.0, 6.0)])
def test_a_segment_outside_the_file_is_refused(tmp_path: Path, start: float, end: float | None) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE[:32000], 16000)
    for function in (audio.decode, audio.clip_duration):
        with pytest.raises(AudioError, match=r"the file lasts 2\.00 s; correct start and end"):
            function(AudioClip(tmp_path / "a.wav", start, end))
    assert len(audio.decode(AudioClip(tmp_path / "a.wav", 1.0, 2.03))) == 16000  # a rounded length


def test_rows_keep_their_segments(tmp_path: Path) -> None:
    rows = [
        row("a.wav", 1.5, 3.0, "a"),
        row("a.wav", 2, name="b"),
        row("a.wav", None, 0.25, "c"),
        row("a.wav", name="d"),
    ]
    rows = [replace(example, root=tmp_path) for example in rows]
    soundfile.write(tmp_path / "a.wav", NOISE[:48000], 16000)
    manifest.write(tmp_path / "rows.jsonl", rows)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines[0]["messages"][0]["content"][0] == {"type": "audio", "audio": "a.wav", "start": 1.5, "end": 3.0}
    assert lines[3]["messages"][0]["content"][0] == {"type": "audio", "audio": "a.wav"}
    read = manifest.read(tmp_path / "rows.jsonl")
    assert [example.audio_parts for example in read] == [example.audio_parts for example in rows]
    assert len(open_rows(tmp_path / "rows.jsonl").group_by_clips()) == 4
    (tmp_path / "sub").mkdir()
    manifest.write(tmp_path / "sub" / "rows.jsonl", read)
    assert manifest.read(tmp_path / "sub" / "rows.jsonl")[0].audio_parts == (Audio("../a.wav", 1.5, 3.0),)
    for write, unpack in ((to_webdataset, from_webdataset), (to_parquet, from_parquet)):
        packed, unpacked = tmp_path / f"packed-{write.__name__}", tmp_path / f"unpacked-{write.__name__}"
        write(tmp_path / "rows.jsonl", packed)
        unpack(packed, unpacked / "rows.jsonl")
        assert [replace(r, root=Path()) for r in manifest.read(unpacked / "rows.jsonl")] == [
            replace(r, root=Path()) for r in read
        ]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"start": -1}, "start is -1; write the seconds"),
        ({"end": "3"}, "end is '3'; write the seconds"),
        ({"start": True}, "start is True"),
        ({"start": 3, "end": 3}, "end 3 s is not after start 3 s"),
        ({"end": 0}, "end 0 s is not after start 0 s"),
    ],
)
def test_wrong_segments_are_told_with_their_row(times: dict[str, object], message: str) -> None:
    part = {"type": "audio", "audio": "a.wav", **times}
    with pytest.raises(DataError, match=rf"rows:row 2: message 1, part 1: {message}"):
        manifest.from_row({"id": "a", "messages": [{"role": "user", "content": [part]}]}, location="rows:row 2")
    with pytest.raises(DataError, match="start in a text part"):
        content = [{"type": "text", "text": "x", "start": 1}]
        manifest.from_row({"id": "a", "messages": [{"role": "user", "content": content}]})
