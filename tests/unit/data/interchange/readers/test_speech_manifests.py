"""Manifests of NeMo, lhotse and Kaldi.

The lhotse rows are as lhotse 1.33 wrote them (`Recording.from_file`, `SupervisionSegment`, `CutSet.from_manifests`),
with other paths.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from earwise.data import manifest
from earwise.data.manifest_path import manifest_path
from earwise.errors import DataError
from earwise.types import Example

pytestmark = pytest.mark.usefixtures("own_home")
RECORDING: dict[str, Any] = {
    "id": "talk", "sources": [{"type": "file", "channels": [0], "source": "talk.wav"}], "sampling_rate": 16000,
    "num_samples": 64000, "duration": 4.0, "channel_ids": [0],
}  # fmt: skip
SUPERVISIONS: list[dict[str, Any]] = [
    {
        "id": "a",
        "recording_id": "talk",
        "start": 0,
        "duration": 2.0,
        "channel": 0,
        "text": "first half",
        "speaker": "s1",
    },
    {
        "id": "b",
        "recording_id": "talk",
        "start": 2.0,
        "duration": 2.0,
        "channel": 0,
        "text": "second half",
        "speaker": "s2",
    },
    {"id": "c", "recording_id": "talk", "start": 0, "duration": 4.0, "channel": 0, "text": "whole", "speaker": "s2"},
]
SEGMENTS = [(None, 2.0), (2.0, None), (None, None)]


def talk(folder: Path) -> None:
    """Four seconds of noise, `talk.wav`."""
    soundfile.write(folder / "talk.wav", 0.1 * np.random.default_rng(0).standard_normal(64000), 16000)


def json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines, compressed if the name says so."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read(name: str, folder: Path) -> list[Example]:
    return manifest.read(manifest_path(name, folder))


def segments(rows: list[Example]) -> list[tuple[float | None, float | None]]:
    return [(part.start, part.end) for row in rows for part in row.audio_parts]


def test_nemo(tmp_path: Path) -> None:
    talk(tmp_path)
    rows = [
        {"audio_filepath": "talk.wav", "duration": 4.0, "text": "whole", "lang": "en"},
        {"audio_filepath": "talk.wav", "duration": 1.5, "offset": 0.5, "text": "part"},
        {"audio_filepath": str(tmp_path / "talk.wav"), "duration": 4.0, "text": "yes", "question": "Loud?"},
    ]
    json_lines(tmp_path / "nemo.json", rows)
    examples = read("nemo.json", tmp_path)
    assert segments(examples) == [(None, None), (0.5, 2.0), (None, None)]
    assert [row.answer for row in examples] == [("whole",), ("part",), ("yes",)]
    assert [row.task for row in examples] == ["transcribe", "transcribe", "open"]
    assert examples[2].question == "Loud?"


def test_lhotse_recordings_and_supervisions(tmp_path: Path) -> None:
    talk(tmp_path)
    json_lines(tmp_path / "talk_recordings_train.jsonl.gz", [RECORDING])
    json_lines(tmp_path / "talk_supervisions_train.jsonl.gz", SUPERVISIONS)
    for name in (".", "talk_supervisions_train.jsonl.gz"):
        examples = read(name, tmp_path)
        assert segments(examples) == SEGMENTS
        assert [(row.answer[0], row.group, row.task) for row in examples] == [
            ("first half", "s1", "transcribe"), ("second half", "s2", "transcribe"), ("whole", "s2", "transcribe")
        ]  # fmt: skip


def test_lhotse_cuts(tmp_path: Path) -> None:
    talk(tmp_path)
    cut = {
        "id": "talk-0",
        "start": 0,
        "duration": 4.0,
        "channel": 0,
        "supervisions": SUPERVISIONS,
        "recording": RECORDING,
    }
    json_lines(tmp_path / "cuts.jsonl.gz", [{**cut, "type": "MonoCut"}])
    assert segments(read("cuts.jsonl.gz", tmp_path)) == SEGMENTS
    trimmed = {**cut, "start": 2.0, "duration": 2.0, "type": "MonoCut"}
    # the start of a supervision counts from the beginning of its cut
    trimmed["supervisions"] = [{**SUPERVISIONS[1], "start": 0.5, "duration": 1.0}]
    json_lines(tmp_path / "trimmed.jsonl", [trimmed])
    assert segments(read("trimmed.jsonl", tmp_path)) == [(2.5, 3.5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": [{"type": "command", "channels": [0], "source": "touch ran |"}]}, "command, which is never run"),
        ({"sources": [{"type": "url", "channels": [0], "source": "https://x/a.wav"}]}, "of type 'url', not a file"),
        ({"sources": []}, "no single source"),
        ({"id": "other"}, "recording 'talk' is not in"),
        ({"duration": None}, "duration is None where seconds are expected"),
    ],
)
def test_lhotse_recordings_that_are_no_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    talk(tmp_path)
    json_lines(tmp_path / "recordings.jsonl", [RECORDING | change])
    json_lines(tmp_path / "supervisions.jsonl", SUPERVISIONS)
    with pytest.raises(DataError, match=message):
        manifest_path("supervisions.jsonl", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_mixed_cuts_are_refused(tmp_path: Path) -> None:
    json_lines(tmp_path / "cuts.jsonl", [{"id": "m", "type": "MixedCut", "tracks": []}])
    with pytest.raises(DataError, match=r"cuts\.jsonl:row 1: a cut of type 'MixedCut'"):
        manifest_path("cuts.jsonl", tmp_path)


def kaldi(folder: Path, scp: str, segments_text: str | None = None) -> None:
    """A Kaldi folder with two utterances."""
    folder.mkdir()
    talk(folder)
    (folder / "wav.scp").write_text(scp)
    (folder / "text").write_text("u1 hello there\nu2 good bye\n")
    (folder / "utt2spk").write_text("u1 s1\nu2 s1\n")
    if segments_text is not None:
        (folder / "segments").write_text(segments_text)


def test_kaldi(tmp_path: Path) -> None:
    kaldi(tmp_path / "k", "talk talk.wav\n", "u1 talk 0.00 1.50\nu2 talk 1.50 4.00\n")
    examples = read("k", tmp_path)
    assert segments(examples) == [(None, 1.5), (1.5, 4.0)]
    assert [(row.id, row.answer[0], row.group) for row in examples] == [
        ("u1", "hello there", "s1"),
        ("u2", "good bye", "s1"),
    ]
    kaldi(tmp_path / "open", "talk talk.wav\n", "u1 talk 0.00 1.50\nu2 talk 1.50 -1\n")
    assert segments(read("open", tmp_path)) == [(None, 1.5), (1.5, None)]
    kaldi(tmp_path / "whole", "u1 talk.wav\nu2\ttalk.wav\n")
    assert segments(read("whole/wav.scp", tmp_path)) == [(None, None), (None, None)]


@pytest.mark.parametrize(
    ("scp", "segments_text", "message"),
    [
        ("u1 touch ran |\nu2 talk.wav\n", None, r"wav\.scp:row 1: a command, which is never run"),
        ("u1 raw.ark:17\nu2 talk.wav\n", None, "points into an archive"),
        ("u1 talk.wav\n", None, "recording 'u2' is not in"),
        ("talk talk.wav\n", "u1 talk 0 1\n", "utterance 'u2' is not in"),
        ("talk talk.wav\n", "u1 talk 2 1\nu2 talk 0 1\n", "it must end after it begins"),
        ("talk talk.wav\n", "u1 talk 2\nu2 talk 0 1\n", "is not `RECORDING START END`"),
    ],
)
def test_kaldi_folders_that_are_refused(tmp_path: Path, scp: str, segments_text: str | None, message: str) -> None:
    kaldi(tmp_path / "k", scp, segments_text)
    with pytest.raises(DataError, match=message):
        manifest_path("k", tmp_path)
    assert not list(tmp_path.rglob("ran"))
