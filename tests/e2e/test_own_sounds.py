"""A folder of sounds to a trained model in three commands: m4a files and a table that a spreadsheet wrote."""

import json
from pathlib import Path

import pytest

from e2e.shell import Cli
from earwise import audio
from earwise.data import manifest
from sound_files import write_with_ffmpeg

KINDS = ("dog", "rooster", "siren", "rain")


def spreadsheet(folder: Path, clips: list[Path]) -> None:
    """Clips as a phone records them, and a table as a German spreadsheet writes it."""
    (folder / "clips").mkdir(parents=True)
    lines = ["Datei;Frage;A;B;C;D;Antwort"]
    for number, clip in enumerate(clips):
        name = f"clips/Aufnahme {number}.m4a"
        write_with_ffmpeg(folder / name, audio.decode(clip), 16000, codec="aac")
        lines.append(f"{name};Welches Geräusch ist das?;{';'.join(KINDS)};{'ABCD'[number % 4]}")
    (folder / "fragen.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")


def test_three_commands(
    cli: Cli, model: str, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spreadsheet(Path("my-sounds"), clips)
    columns = ("--column", "audio=Datei", "--column", "question=Frage", "--column", "answer=Antwort")
    built = cli(
        "build", "convert", "my-sounds/fragen.csv", *columns, "--val-share", "0.3", "--out", "my-sounds/questions.jsonl"
    )
    assert built.code == 0, built.err
    rows = manifest.read(Path("my-sounds/questions.jsonl"))
    assert [row.answer[0] for row in rows] == [KINDS[number % 4] for number in range(len(clips))]
    held_out = [row for row in rows if row.split == "val"]
    assert 0 < len(held_out) < len(rows)

    few_steps = ("stages.0.max_steps=1", "stages.0.clips_per_step=2", "eval.0.limit=1", "eval.0.max_new_tokens=4")
    trained = cli("train", "own-sounds", "--data", "my-sounds", "--out", "runs/mine", f"model.name={model}", *few_steps)
    assert trained.code == 0, trained.err
    assert "questions.jsonl" in trained.out and Path("runs/mine/final").is_dir()

    clip = held_out[0].audio_paths[0]
    asked = cli(
        "ask", clip, "Welches Geräusch ist das?", "--choices", ",".join(KINDS), "--model", "runs/mine", "--json"
    )
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)["answer"] in (*KINDS, None)
    table = "my-sounds/fragen.csv?audio=Datei&question=Frage&answer=Antwort"
    measured = cli(
        "evaluate", "--data", table, "--model", "runs/mine", "--limit", 1, "--no-controls", "--max-new-tokens", 4,
        "--out", "runs/table", "--json",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["n"] == 1, (
        "a table is read wherever a manifest is taken; nothing but JSON on stdout"
    )
