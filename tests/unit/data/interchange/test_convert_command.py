"""`earwise build convert`, both ways, on the bundled clips."""

import json
from pathlib import Path
from typing import Any

import pytest

from earwise.cli import run
from earwise.commands.build.convert import CHAT_FORMS, FORMS, MANIFEST
from earwise.data import manifest
from earwise.data.interchange.writers.exporting import WRITERS
from earwise.data.manifest_path import manifest_path
from earwise.types import Example

pytestmark = pytest.mark.usefixtures("own_home")
FILE_NAMES = {"csv": "out.csv", "tsv": "out.tsv", "nemo": "out.json"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of twelve bundled questions in the working folder."""
    monkeypatch.chdir(tmp_path)
    manifest.write(Path("small.jsonl"), manifest.read(manifest_path("starter:val", Path()))[:12])
    return Path("small.jsonl")


def comparable(example: Example) -> dict[str, Any]:
    """What must survive a conversion: everything but where the clip lies."""
    row = manifest.to_row(example)
    row["messages"] = [[part.get("text") for part in message["content"]] for message in row["messages"]]
    return row | {"sound": [path.read_bytes() for path in example.audio_paths]}


def test_the_command_lists_all_writers() -> None:
    assert (MANIFEST, *CHAT_FORMS, *WRITERS) == FORMS


@pytest.mark.parametrize("form", [form for form in FORMS if form not in (MANIFEST, "kaldi")])
def test_there_and_back(small: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = FILE_NAMES.get(form, "out")
    assert run(["build", "convert", str(small), "--to", form, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": out, "form": form, "rows": 12, "skipped": 0}
    assert run(["build", "convert", out, "--out", "back/again.jsonl"]) == 0
    again, originals = manifest.read(Path("back/again.jsonl")), manifest.read(small)
    assert list(map(comparable, again)) == list(map(comparable, originals))


def test_transcripts_to_kaldi_and_back(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "convert", str(small), "--to", "kaldi", "--out", "refused"]) == 2
    assert "Kaldi holds transcripts only" in capsys.readouterr().err
    clip = str(manifest.read(small)[0].audio_paths[0].absolute())
    Path("asr.csv").write_text(f"id,path,start,end,transcript\nu1,{clip},0.5,1.25,hello there\nu2,{clip},,,good bye\n")
    assert run(["build", "convert", "asr.csv", "--to", "kaldi", "--out", "kaldi"]) == 0
    assert Path("kaldi/text").read_text() == "u1 hello there\nu2 good bye\n"
    assert Path("kaldi/segments").read_text().splitlines()[0].split()[2:] == ["0.500", "1.250"]
    assert run(["build", "convert", "kaldi", "--out", "kaldi.jsonl"]) == 0
    first, second = manifest.read(Path("kaldi.jsonl"))
    assert (first.answer, first.audio_parts[0].start, first.audio_parts[0].end) == (("hello there",), 0.5, 1.25)
    assert (second.answer, second.audio_parts[0].start) == (("good bye",), None)


def test_what_a_form_cannot_hold_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = manifest.read(small)[:2]
    row = manifest.to_row(first)
    row["messages"][0]["content"].insert(
        1, {"type": "audio", "audio": manifest.to_row(second)["messages"][0]["content"][0]["audio"]}
    )
    Path("pair.jsonl").write_text(json.dumps(row) + "\n")
    for form in ("csv", "nemo", "lhotse", "kaldi"):
        assert run(["build", "convert", "pair.jsonl", "--to", form, "--out", "pair"]) == 2
        assert "1 turns and 2 clips" in capsys.readouterr().err
        assert not Path("pair").exists()
    assert run(["build", "convert", "pair.jsonl", "--to", "parquet", "--out", "pair"]) == 0


def test_options_and_mistakes(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(manifest.read(small)[0].audio_paths[0].absolute())
    Path("t.csv").write_text(f"Datei,Antwort\n{clip},Hund\n{clip}x,Katze\n")
    command = ["build", "convert", "t.csv", "--column", "audio=Datei", "--column", "answer=Antwort", "--prompt", "Was?"]
    assert run([*command, "--out", "a.jsonl"]) == 2
    assert "t.csv:row 3: audio file" in capsys.readouterr().err
    assert not Path("a.jsonl").exists()
    assert run([*command, "--skip-bad", "--out", "a.jsonl"]) == 0
    assert "1 rows; 1 left out" in capsys.readouterr().out
    assert manifest.read(Path("a.jsonl"))[0].question == "Was?"
    assert run([*command, "--out", "a.jsonl"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert run(["build", "convert", "t.csv", "--column", "sound=Datei", "--out", "b.jsonl"]) == 2
    assert "'sound' is none of id, audio" in capsys.readouterr().err
    assert run(["build", "convert", str(small), "--prompt", "Was?", "--out", "b.jsonl"]) == 2
    assert "--prompt is for tables" in capsys.readouterr().err
    assert run(["build", "convert", "gone.csv", "--out", "b.jsonl"]) == 2
    assert "gone.csv" in capsys.readouterr().err
