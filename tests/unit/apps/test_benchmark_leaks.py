"""Items of a benchmark that stand in training data are found by clip, video and question; the score without them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from chat_server import choose_by_loudness, run_chat_server
from earwise import cli
from earwise.apps.benchmark_leaks import find_leaks, report_leaks
from earwise.audio import decode
from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.evaluation.run import evaluate
from earwise.evaluation.task_table import load_task
from earwise.types import Audio, Example, Text, Turn
from scripted_engine import ScriptedEngine
from sound_files import write_with_ffmpeg

QUESTION = "Based on the given audio, identify the source of the speaking voice."


def example(number: int, clip: Path, question: str = "What is it?", **fields: str) -> Example:
    turns = (Turn("user", (Audio(str(clip)), Text(question))),)
    return Example(f"q{number}", turns, ("dog",), ("dog", "cat"), licence="CC0", **fields)


@pytest.fixture
def clips() -> list[Path]:
    """Six real clips of the starter set."""
    return list(dict.fromkeys(path for row in manifest.read(STARTER / "val.jsonl") for path in row.audio_paths))[:6]


def re_encoded(path: Path, out: Path) -> Path:
    """The recording at another level, trimmed by a tenth of a second, as MP3."""
    samples, rate = soundfile.read(path)
    soundfile.write(out, 0.6 * samples[rate // 10 :], rate)
    return out


def test_a_re_encoded_clip_a_question_and_a_video_are_found(tmp_path: Path, clips: list[Path]) -> None:
    copy = re_encoded(clips[0], tmp_path / "copy.mp3")
    training = [
        example(0, copy, "Which animal?"),
        example(1, clips[1], "Who?"),
        replace(example(2, clips[5], QUESTION), choices=("a cat", "dog", "a woman")),
        example(3, clips[5], "Where?", group="youtube:qx8hrhBZJ98"),
    ]
    manifest.write(tmp_path / "train.jsonl", training)
    items = [
        example(10, clips[0]),
        example(11, clips[1]),
        replace(example(12, clips[2], QUESTION), choices=("a woman", "dog", "a cat")),
        example(13, clips[3], group="youtube:qx8hrhBZJ98"),
        example(14, clips[4]),
    ]
    assert find_leaks(items, [tmp_path / "train.jsonl"]) == {
        "q10": "a copy of the training file copy.mp3",
        "q11": f"the training file {clips[1].name}",
        "q12": "question and options of training row q2",
        "q13": "video of training row q3",
    }


def as_m4a(path: Path, out: Path) -> None:
    """AAC at 48 kbit/s, as video sites deliver it."""
    write_with_ffmpeg(out, decode(path, 16_000), 16_000, codec="aac", bit_rate=48_000)


CHANGES: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "m4a": (".m4a", as_m4a),
    "ogg": (".ogg", lambda path, out: soundfile.write(out, decode(path, 16_000), 16_000)),
    "mp3-at-44100": (".mp3", lambda path, out: soundfile.write(out, decode(path, 44_100), 44_100)),
    "20-db-softer": (".wav", lambda path, out: soundfile.write(out, 0.1 * decode(path, 16_000), 16_000)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_in_other_codecs_and_levels_are_found(change: str, tmp_path: Path, clips: list[Path]) -> None:
    """All six clips, and none of three others."""
    ending, make = CHANGES[change]
    training = []
    for number, clip in enumerate(clips):
        make(clip, tmp_path / f"copy-{number}{ending}")
        training.append(example(number, tmp_path / f"copy-{number}{ending}", f"Which one, {number}?"))
    manifest.write(tmp_path / "train.jsonl", training)
    rows = manifest.read(STARTER / "val.jsonl")
    others = [path for path in dict.fromkeys(path for row in rows for path in row.audio_paths) if path not in clips][:3]
    items = [example(10 + number, clip) for number, clip in enumerate([*clips, *others])]
    assert list(find_leaks(items, [tmp_path / "train.jsonl"])) == [f"q{10 + number}" for number in range(6)]


def test_the_score_without_them_stands_beside(tmp_path: Path, clips: list[Path]) -> None:
    manifest.write(tmp_path / "train.jsonl", [example(0, clips[0])])
    items, task = [example(10 + number, clip) for number, clip in enumerate(clips[:4])], load_task("manifest")
    right = {"q10", "q11"}
    engine = ScriptedEngine(lambda prompt: f"<answer>{'dog' if prompt.key in right else 'cat'}</answer>")
    evaluate(engine, items, tmp_path / "run", task=task)
    report = report_leaks(tmp_path / "run", items, [tmp_path / "train.jsonl"], task)
    assert (report["count"], report["n"], list(report["items"])) == (1, 4, ["q10"])
    assert report["without"]["official"]["accuracy"] == pytest.approx(1 / 3)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["training_overlap"]["count"] == 1


def test_the_command_names_the_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four bundled clips, of which training has the clip of one."""
    rows = manifest.read(STARTER / "val.jsonl")
    manifest.write(tmp_path / "train.jsonl", rows[:1])
    command = ["evaluate", "--data", "starter:val", "--limit", "4", "--no-controls", "--out", str(tmp_path / "run")]
    with run_chat_server(choose_by_loudness) as server:
        command += ["--model", f"{server.url}/m"]
        assert cli.run([*command, "--training", str(tmp_path / "nothing.jsonl")]) == 2
        assert "nothing.jsonl: no such file" in capsys.readouterr().err and not (tmp_path / "run").exists()
        assert cli.run([*command, "--training", str(tmp_path / "train.jsonl")]) == 0
    assert "1 of 4 items stand in the training data" in capsys.readouterr().out


def test_training_manifests_are_read_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken manifest is refused at once; clips that are not there are counted, and found by their question."""
    row = next(row for row in manifest.read(STARTER / "val.jsonl") if row.choices)
    gone = {"id": "t", "audio": "gone.wav", "question": row.question, "choices": list(row.choices),
            "answer": row.answer[0], "licence": "CC0"}  # fmt: skip
    (tmp_path / "gone.jsonl").write_text(json.dumps(gone) + "\n")
    (tmp_path / "broken.jsonl").write_text("{\n")
    manifest.write(tmp_path / "items.jsonl", [row])
    command = ["evaluate", "--data", str(tmp_path / "items.jsonl"), "--no-controls", "--out", str(tmp_path / "run")]
    with run_chat_server(choose_by_loudness) as server:
        command += ["--model", f"{server.url}/m"]
        assert cli.run([*command, "--training", str(tmp_path / "broken.jsonl")]) == 2
        assert "broken.jsonl" in capsys.readouterr().err and not (tmp_path / "run").exists() and not server.bodies
        assert cli.run([*command, "--training", str(tmp_path / "gone.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "1 of 1 items stand in the training data" in text and "1 training clips are not there" in text
