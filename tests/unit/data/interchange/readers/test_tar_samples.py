"""WebDataset shards of other programs."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from earwise.data import manifest
from earwise.data.interchange.readers import tar_samples
from earwise.data.manifest_path import manifest_path
from earwise.errors import DataError

pytestmark = pytest.mark.usefixtures("own_home")
RIFF = b"RIFF" + b"\1" * 60


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> None:
    """A tar file of members in order."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_samples_of_audio_json_and_text(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    question = json.dumps(
        {"question": "Which?", "choices": ["dog", "cat"], "answer": "B", "audio": "gone.wav"}
    ).encode()
    write_tar(tmp_path / "shards" / "00.tar", [("v1.0/a.json", question), ("v1.0/a.wav", RIFF), ("v1.0/a.png", b"x")])
    write_tar(
        tmp_path / "shards" / "01.tar.gz", [("b.flac", b"fLaC1"), ("b.json", question), ("._b.flac", b"x")], "w:gz"
    )
    rows = manifest.read(manifest_path("shards", tmp_path))
    assert [(row.id, row.answer, row.audio_paths[0].suffix) for row in rows] == [
        ("v1.0/a", ("cat",), ".wav"), ("b", ("cat",), ".flac")
    ]  # fmt: skip
    assert rows[0].audio_paths[0].read_bytes() == RIFF

    write_tar(
        tmp_path / "asr.tar", [("1.mp3", b"ID3x"), ("1.txt", b"hello there\n"), ("2.mp3", b"ID3y"), ("2.txt", b"hi")]
    )
    rows = manifest.read(manifest_path("asr.tar?answer=text&prompt=Transcribe.", tmp_path))
    assert [(row.question, row.answer) for row in rows] == [("Transcribe.", ("hello there",)), ("Transcribe.", ("hi",))]


def test_an_archive_decides_nothing_but_suffixes(tmp_path: Path) -> None:
    text = json.dumps({"question": "Q?", "answer": "x"}).encode()
    write_tar(tmp_path / "h.tar", [("../../evil.wav", RIFF), ("../../evil.json", text)])
    (row,) = manifest.read(manifest_path("h.tar", tmp_path))
    assert row.audio_paths[0].parent.name == "clips"
    assert not list(tmp_path.rglob("evil*"))


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "deaf.tar", [("a.json", b'{"question": "Q?"}')])
    with pytest.raises(DataError, match=r"deaf\.tar: sample 'a' holds no audio"):
        manifest_path("deaf.tar", tmp_path)
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="is a link or a device"):
        manifest_path("link.tar", tmp_path)
    write_tar(tmp_path / "list.tar", [("a.wav", RIFF), ("a.json", b"[1]")])
    with pytest.raises(DataError, match="holds a JSON list"):
        manifest_path("list.tar", tmp_path)
    whole = (tmp_path / "list.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    with pytest.raises(DataError, match="is not a complete tar file"):
        manifest_path("cut.tar", tmp_path)
    monkeypatch.setattr(tar_samples, "MAX_TEXT_BYTES", 10)
    write_tar(tmp_path / "long.tar", [("a.wav", RIFF), ("a.txt", b"x" * 11)])
    with pytest.raises(DataError, match="11 bytes of text"):
        manifest_path("long.tar", tmp_path)


def test_conversations_in_archives_get_the_clips_of_their_samples(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "First <audio> then <audio>: same?"},
        {"role": "assistant", "content": "no"},
    ]
    text = json.dumps({"messages": messages}).encode()
    write_tar(tmp_path / "chat.tar", [("a.0.wav", RIFF), ("a.1.wav", RIFF + b"2"), ("a.json", text)])
    (row,) = manifest.read(manifest_path("chat.tar", tmp_path))
    assert (row.id, row.answer) == ("a", ("no",))
    assert [path.read_bytes() for path in row.audio_paths] == [RIFF, RIFF + b"2"]
    assert [type(part).__name__ for part in row.turns[0].parts] == ["Text", "Audio", "Text", "Audio", "Text"]
