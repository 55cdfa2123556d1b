"""A labelled collection becomes a manifest of questions in one call, in the library as on the command line."""

import json
from dataclasses import asdict

import pytest

from earwise import audio, cli
from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.datasets.checks import check_manifests
from earwise.datasets.labels.build_questions import QuestionOptions, build_questions
from earwise.errors import AudioError, ConfigError
from sound_files import write_with_ffmpeg


@pytest.fixture
def collection(tmp_path):
    """Some of the bundled clips with their labels."""
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()][::12]
    for row in rows:
        (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
        (tmp_path / row["path"]).symlink_to(STARTER / row["path"])
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_library_and_command_build_the_same_manifest(collection, capsys):
    options = QuestionOptions(tasks=("recognition", "compare", "order"), limit=4, per_clip=1, seed=2, workers=1)
    messages = []
    built = build_questions(collection, collection / "library" / "q.jsonl", options, messages.append)
    assert built.tasks.keys() == {"recognition", "compare", "order"} and built.skipped == 0
    assert built.questions == sum(built.tasks.values()) == len(manifest.read(collection / "library" / "q.jsonl"))
    assert any("clips" in line for line in messages)
    out = collection / "command" / "q.jsonl"
    line = ["build", "labels", str(collection), "--out", str(out), "--tasks", "recognition,compare,order"]
    line += ["--limit", "4", "--per-clip", "1", "--seed", "2", "--workers", "1", "--no-check", "--json"]
    assert cli.run(line) == 0
    printed = json.loads(capsys.readouterr().out)
    summary = asdict(built)
    assert printed == {"out": str(out), "left_out": summary.pop("excluded")} | summary
    assert out.read_bytes() == (collection / "library" / "q.jsonl").read_bytes()


def test_unreadable_clips_are_an_error_unless_they_are_skipped(collection):
    row = json.loads((collection / "labels.jsonl").read_text().splitlines()[0])
    (collection / row["path"]).unlink()
    (collection / row["path"]).write_text("not audio")
    with pytest.raises(AudioError, match="use --skip-bad"):
        build_questions(collection, collection / "q.jsonl")
    built = build_questions(collection, collection / "q.jsonl", QuestionOptions(skip_unreadable=True))
    assert built.skipped == 1
    with pytest.raises(ConfigError, match="field 'smell' is none of sound"):
        build_questions(collection, collection / "q.jsonl", QuestionOptions(fields=("smell",)))


def test_conditions_and_licence_apply_to_label_rows(collection):
    options = QuestionOptions(tasks=("open",), without=(("category", "music"),), licence="CC0")
    build_questions(collection, collection / "q.jsonl", options)
    examples = manifest.read(collection / "q.jsonl")
    assert {example.category for example in examples} == {"sound", "speech"}
    assert all(example.licence for example in examples)


def test_built_manifests_are_checked_and_large_ones_without_their_audio(collection, monkeypatch):
    build_questions(collection, collection / "q.jsonl", QuestionOptions(tasks=("open",)))
    messages = []
    report = check_manifests.check_built_manifests([collection / "q.jsonl"], workers=1, notify=messages.append)
    assert report["sounds"]["clips"] > 0 and (collection / "q.checks.html").is_file()
    monkeypatch.setattr(check_manifests, "MANY_ROWS", 3)
    report = check_manifests.check_built_manifests([collection / "q.jsonl"], workers=1, notify=messages.append)
    assert report["sounds"] == {} and any("checked without their audio" in line for line in messages)


def test_class_folders_of_any_format_and_what_is_not_used_is_told(tmp_path, capsys):
    """Files as a Mac copies them: hidden companions of every clip, and a text file in a class folder."""
    clips = sorted((STARTER / "clips").glob("*.ogg"))
    for number, clip in enumerate(clips[:12]):
        folder = tmp_path / "sounds" / ("dog", "rain")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        samples = audio.decode(clip)
        if number % 3:
            (folder / f"{number}.ogg").write_bytes(clip.read_bytes())
        else:
            write_with_ffmpeg(folder / f"{number}.m4a", samples, 16000, codec="aac")
        (folder / f"._{number}.ogg").write_bytes(b"\0\5\26\7")
    (tmp_path / "sounds" / "dog" / "notes.txt").write_text("barks")
    (tmp_path / "sounds" / ".DS_Store").write_bytes(b"\0")
    assert cli.run(["build", "labels", str(tmp_path / "sounds"), "--out", str(tmp_path / "rows.jsonl")]) == 0
    rows = manifest.read(tmp_path / "rows.jsonl")
    assert {path.suffix for row in rows for path in row.audio_paths} == {".m4a", ".ogg"}
    assert "1 files in" in (err := capsys.readouterr().err) and "1 with .txt; the first is dog/notes.txt" in err
