"""Names of files as people have them: every name that a manifest can hold is found, from any working folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwise import audio
from earwise.cli import run
from earwise.data import manifest
from earwise.data.index import open_rows
from earwise.data.webdataset import from_webdataset, to_webdataset
from earwise.errors import DataError
from earwise.types import AudioClip

NAMES = [
    "a b.wav", "a#b.wav", "100%25.wav", "a?b.wav", "a;b.wav", "o'brien.wav", 'say "hi".wav', "ü é 日本.wav",
    "-dash.wav", "a,b.wav", "UPPER.WAV", "NOEXT", "sub folder/x (1).wav", "e\u0301.wav", "\u00e9.wav",
    "&amp;<b>.wav", "$HOME`id`.wav",
]  # fmt: skip
SOUND = (0.3 * np.sin(np.arange(4000) / 9)).astype(np.float32)


def write_rows(folder: Path, names: list[str]) -> Path:
    """A manifest about a clip of each of these names."""
    lines = []
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, SOUND, 8000, format="WAV")
        content = [{"type": "audio", "audio": name}, {"type": "text", "text": f"What is {number}?"}]
        row = {"id": str(number), "messages": [{"role": "user", "content": content}], "answer": "x", "licence": "CC0"}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "rows.jsonl"


def test_every_name_is_decoded_indexed_checked_packed_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "my data", NAMES)
    monkeypatch.chdir(tmp_path)
    path = Path("my data/rows.jsonl")
    rows = manifest.read(path)
    assert all(len(audio.decode(clip)) == 8000 for row in rows for clip in row.clips)
    assert len(open_rows(path).group_by_clips()) == len(NAMES)
    assert run(["build", "check", str(path)]) in (0, 1), capsys.readouterr().err
    to_webdataset(path, Path("packed"))
    monkeypatch.chdir(tmp_path / "my data")
    from_webdataset(Path("../packed"), Path("../again/rows.jsonl"))
    again = manifest.read(tmp_path / "again" / "rows.jsonl")
    assert [clip.read_bytes() for row in again for clip in row.audio_paths] == [
        (tmp_path / "my data" / name).read_bytes() for name in NAMES
    ]


def test_links_home_and_paths_written_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "real", ["clips/a.wav"])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "b.wav").symlink_to("clips/a.wav")
    monkeypatch.setenv("HOME", str(tmp_path))
    row = json.loads(path.read_text())
    for name in ("clips\\a.wav", "~/real/clips/a.wav", "b.wav", "../link/clips/a.wav", f"file://{tmp_path}/real/b.wav"):
        row["messages"][0]["content"][0]["audio"] = name
        path.write_text(json.dumps(row) + "\n")
        for manifest_path in (path, tmp_path / "link" / "rows.jsonl"):
            (example,) = manifest.read(manifest_path)
            assert len(audio.decode(example.clips[0])) == 8000, name
    for name in ("C:\\clips\\a.wav", "clips\\missing.wav"):
        row["messages"][0]["content"][0]["audio"] = name
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match="is missing"):
            manifest.read(path)


def test_a_name_that_is_no_utf8_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sounds" / "dog"
    folder.mkdir(parents=True)
    soundfile.write(tmp_path / "a.wav", SOUND, 8000)
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        (folder / name).write_bytes((tmp_path / "a.wav").read_bytes())
    except OSError:
        pytest.skip("this file system holds only UTF-8 names")
    assert len(audio.decode(AudioClip(folder / name))) == 8000
    (tmp_path / "sounds" / "cat").mkdir()
    for number in range(8):
        soundfile.write(tmp_path / "sounds" / ("cat", "dog")[number % 2] / f"{number}.wav", SOUND, 8000)
    assert run(["build", "labels", str(tmp_path / "sounds"), "--out", str(tmp_path / "rows.jsonl")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error:") and "no UTF-8 text" in error and "rename" in error
    assert not (tmp_path / "rows.jsonl").exists()
