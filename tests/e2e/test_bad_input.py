"""Wrong input of users: one line that names the file or row and the remedy, exit code 2, no incomplete output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from e2e.shell import Cli, Done, started

pytestmark = pytest.mark.weights
RATE = 16000
REMEDIES = (
    "; ",
    "(see earwise",
    "is none of",
    "should be",
    "the bundled ones are",
    "not a safetensors file",
)  # what to do, or what would be right


def tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def refused(done: Done, *words: object) -> None:
    """Assert that the command printed one line that contains these words, and ended with code 2."""
    assert done.code == 2, done.err
    assert done.out == ""
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert str(word) in line, line
    assert any(sign in line for sign in REMEDIES), f"no remedy in {line!r}"


def empty(path: Path) -> None:
    path.touch()


def folder(path: Path) -> None:
    path.mkdir()


def truncated(path: Path) -> None:
    soundfile.write(path, tone(), RATE)
    path.write_bytes(path.read_bytes()[:9000])


def no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros((0, 1), np.float32), RATE)


def no_audio(path: Path) -> None:
    path.write_text("not a sound\n" * 100)


def silent(path: Path) -> None:
    soundfile.write(path, np.zeros(RATE, np.float32), RATE)


def with_nan(path: Path) -> None:
    waveform = tone()
    waveform[1000] = np.nan
    soundfile.write(path, waveform, RATE, subtype="FLOAT")


def one_hour(path: Path) -> None:
    soundfile.write(path, np.tile(tone(1, 1000), 3600), 1000, subtype="PCM_U8")


@pytest.mark.parametrize("make", [empty, folder, truncated, no_samples, no_audio], ids=lambda make: make.__name__)
def test_files_that_cannot_be_read_are_refused_before_a_model_is_loaded(
    make: Callable[[Path], None], cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    make(path)
    refused(cli("ask", path, "What is it?", "--model", "no-such-model"), path)


@pytest.mark.parametrize("make", [silent, with_nan, one_hour], ids=lambda make: make.__name__)
def test_files_without_usable_audio_are_refused(
    make: Callable[[Path], None], cli: Cli, model: str, tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    make(path)
    refused(cli("ask", path, "What is it?", "--model", model), path)


def test_many_channels_and_high_rates_are_accepted(cli: Cli, model: str, tmp_path: Path) -> None:
    eight, fast = tmp_path / "eight.wav", tmp_path / "fast.wav"
    soundfile.write(eight, np.stack([tone()] * 8, axis=1), RATE)
    soundfile.write(fast, tone(0.5, 192000), 192000)
    done = cli("ask", eight, fast, "What?", "--model", model, "--max-new-tokens", 1, "--json")
    assert done.code == 0, done.err
    assert done.json["audio_seconds"] == pytest.approx(1.5, abs=0.01)


def row(**changes: Any) -> dict[str, Any]:
    content = [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "Which?"}]
    good = {"id": "1", "messages": [{"role": "user", "content": content}], "choices": ["dog", "cat"], "answer": "dog"}
    return good | changes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{not json"], "row 1: not JSON"),
        ([json.dumps(row()), json.dumps(row())], "row 2: id '1' is taken by row 1"),
        ([json.dumps(row(answer="bird"))], "row 1: answer 'bird'"),
        ([json.dumps(row()).replace('"answer"', '"anwser"')], "unknown field 'anwser'"),
        ([json.dumps(row(choices=["dog", "dog"]))], "occurs twice"),
        ([json.dumps(row(messages=[{"role": "user", "content": [{"type": "audio", "audio": "b.wav"}]}]))], "b.wav"),
        ([], "no rows"),
    ],
    ids=["json", "twice", "answer", "field", "choices", "missing", "empty"],
)
@pytest.mark.parametrize("command", ["evaluate", "train", "build check"])
def test_bad_rows_are_named(command: str, lines: list[str], message: str, cli: Cli, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    path, out, recipe = tmp_path / "bad.jsonl", tmp_path / "out", tmp_path / "recipe.yaml"
    path.write_text("".join(line + "\n" for line in lines))
    recipe.write_text("recipe: r\nstages: [{kind: sft, max_steps: 1, data: {mixture: [{manifest: bad.jsonl}]}}]\n")
    arguments = {
        "evaluate": ["evaluate", "--data", path, "--out", out],
        "train": ["train", recipe, "--out", out],
        "build check": ["build", "check", path],
    }
    done = cli(*arguments[command])
    if command == "build check" and "1 rows" in done.out:  # the rows that can be used are checked all the same
        assert done.code == 2 and f"problem: {path}:" in done.out and message in done.out
        assert (
            done.err.splitlines()[-1]
            == f"error: {path}: 1 rows cannot be used, as listed; correct them, or take them out"
        )
    else:
        refused(done, path, message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages.0.max_stepps=1", "did you mean 'max_steps'"),
        ("stages.0.optimizer.learning_rate=fast", "fast"),
        ("stages.1.rewards={acuracy: 1.0}", "did you mean 'accuracy"),
        ("stages.0.data.styles={rhyme: 1.0}", "rhyme"),
        ("stages.0.data.styles={think: 1.0}", "no reasoning"),
        ("stages.0.data.mixture=[{manifest: nowhere.jsonl}]", "nowhere.jsonl"),
        ("stages.0.data.mixture=[{manifest: 'starter:tset'}]", "starter:val"),
        ("stages.0.trainable={encoder: frozen, connector: frozen, decoder: frozen}", "nothing to train"),
    ],
)
def test_bad_settings_are_named(setting: str, message: str, cli: Cli, recipe: Path, tmp_path: Path) -> None:
    plan = ["--plan"] if "trainable" in setting else []
    refused(cli("train", recipe, setting, "--out", tmp_path / "run", *plan), message)
    assert not (tmp_path / "run").exists()


def test_training_looks_at_its_files_first(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    truncated(tmp_path / "a.wav")
    (tmp_path / "questions.jsonl").write_text(json.dumps(row()) + "\n")
    done = cli("train", recipe, "--data", tmp_path, "--out", tmp_path / "run", "eval=[]")
    refused(done, "row '1'", tmp_path / "a.wav", "on_bad_row: skip")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_keeps_its_answers_and_names_the_file_it_could_not_read(
    cli: Cli, model: str, clips: list[Path], tmp_path: Path
) -> None:
    with_nan(tmp_path / "a.wav")
    content = [{"type": "audio", "audio": str(clips[0])}, {"type": "text", "text": "Which?"}]
    good = row(id="2", messages=[{"role": "user", "content": content}])
    (tmp_path / "bad.jsonl").write_text(json.dumps(row()) + "\n" + json.dumps(good) + "\n")
    arguments = ["evaluate", "--data", tmp_path / "bad.jsonl", "--model", model, "--out", tmp_path / "run"]
    arguments += ["--no-controls", "--max-new-tokens", 2]
    done = cli(*arguments)
    assert done.code == 2
    assert "1 of 2 items" in done.err.splitlines()[-1]
    assert "a.wav" in done.err.splitlines()[-1]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["n"] == 2
    assert cli(*arguments, "--allow-errors").code == 0


@pytest.mark.parametrize("broken", ["nothing", "no family", "no weights", "noise"])
def test_broken_models_are_refused(broken: str, cli: Cli, clips: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if broken != "nothing":
        family = {"no family": {}}.get(broken, {"family": "embedded"})
        (folder / "earwise.json").write_text(json.dumps(family))
    if broken == "noise":
        (folder / "trained.safetensors").write_bytes(b"\0" * 64)
    refused(cli("ask", clips[0], "What?", "--model", folder), folder)


def test_a_missing_collection_class_or_file_is_named(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "questions.jsonl"
    listed = tmp_path / "labels.csv"
    listed.write_text("path,label\na.wav,dog\nb.wav,cat\n")
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    refused(cli("build", "labels", listed, "--out", out), tmp_path / "b.wav", "--skip-bad")
    refused(cli("build", "labels", listed, "--out", out, "--tasks", "riddles", "--skip-bad"), "riddles")
    assert not out.exists()


LIMIT = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"  # a disk that is full after so many bytes
)


def full_disk(arguments: list[object], size: int) -> Done:
    process = started(arguments, before=LIMIT.format(size))
    out, err = process.communicate(timeout=600)
    return Done(process.returncode, out, err)


def test_a_full_disk_leaves_no_half_manifest(cli: Cli, clips: list[Path], tmp_path: Path) -> None:
    for number, name in enumerate(("dog", "cat", "rain", "dog", "cat", "rain", "dog", "cat", "rain", "dog")):
        soundfile.write(tmp_path / f"{number}.wav", tone(), RATE)
        with (tmp_path / "labels.csv").open("a") as handle:
            handle.write(f"{number}.wav,{name}\n" if number else f"path,label\n{number}.wav,{name}\n")
    out = tmp_path / "out" / "questions.jsonl"
    arguments = ["build", "labels", tmp_path / "labels.csv", "--out", out, "--tasks", "open,caption"]
    refused(full_disk(arguments, 500), out, "cannot be written")
    assert not any(out.parent.iterdir())
    assert cli(*arguments).code == 0


def test_training_on_a_full_disk_goes_on_when_there_is_room(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = full_disk(["train", recipe, "--profile", "short", "--out", out], 1_000_000)
    refused(done, out, "free some space")
    assert [path.name for path in out.rglob("*.part")] == []
    assert cli("train", "--resume", out).code == 0
