"""The fitted connector hears labels in clips that it was not fitted on, and the model with it can be trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from earwise import cli
from earwise.apps.label_connector import build_label_connector
from earwise.datasets.labels.label_names import UNINFORMATIVE_LABELS
from earwise.errors import ConfigError, DataError
from earwise.models import base
from families.embedded import random_base_weights, write_base_weights

PITCHES = {"owl": 300.0, "siren": 900.0, "bell": 2500.0}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base weights at test size, where the real ones are expected."""
    write_base_weights(tmp_path / "home", random_base_weights())
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Twenty clips of each of three pitches, a quarter of them for validation."""
    rng = np.random.default_rng(0)
    lines = ["path,label,category,split,group"]
    for label, pitch in PITCHES.items():
        for number in range(20):
            time = np.arange(int(16000 * rng.uniform(0.5, 1.2))) / 16000
            sound = np.sin(2 * np.pi * pitch * rng.uniform(0.95, 1.05) * time) * rng.uniform(0.1, 0.5)
            name = f"{label}-{number}.wav"
            soundfile.write(tmp_path / name, sound + 0.01 * rng.standard_normal(len(time)), 16000)
            lines.append(f"{name},{label},sound,{'val' if number % 4 == 0 else 'train'},{label}{number}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "clips.csv"


def composed(folder: Path, labels: list[str]) -> Path:
    """A manifest of 32 scenes of two or three tones with silence between them, a quarter of them for validation."""
    rng, rows = np.random.default_rng(1), []
    for number in range(32):
        sound, events = np.zeros(0), []
        for label in rng.permutation(labels)[: 2 + number % 2].tolist():
            time = np.arange(16000) / 16000
            sound = np.concatenate([sound, np.zeros(8000)])
            events.append({"label": label, "at_s": len(sound) / 16000, "for_s": 1.0})
            sound = np.concatenate([sound, 0.3 * np.sin(2 * np.pi * PITCHES[label] * rng.uniform(0.95, 1.05) * time)])
        soundfile.write(folder / f"scene-{number}.wav", sound, 16000)
        content = [{"type": "audio", "audio": f"scene-{number}.wav"}, {"type": "text", "text": "What comes first?"}]
        split = "val" if number % 4 == 0 else "train"
        row = {"id": f"s{number}", "messages": [{"role": "user", "content": content}], "answer": events[0]["label"]}
        rows.append(json.dumps(row | {"split": split, "events": events}))
    (folder / "scenes.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "scenes.jsonl"


def test_it_hears_clips_that_it_was_not_fitted_on(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = base.load("embedded-blank", device="cpu", trim=True)
    scenes = composed(tmp_path, ["owl", "siren", "bell"])
    report = build_label_connector(model, clips, tmp_path / "start", scenes=[scenes], encoder_cache=tmp_path / "states")
    assert report.clips == 45 + 24 and report.first["sound"] > 0.6 and report.shown["sound"] == 1.0
    assert report.event_counts == 8 and report.counted is not None and report.counted >= 0.5, "random encoder weights"
    assert len(list((tmp_path / "states").rglob("*.npy"))) == 60 + 32
    loaded: Any = base.load(str(tmp_path / "start"), device="cpu")
    (states,) = loaded.encode_audio([np.sin(2 * np.pi * 300 * np.arange(12000) / 16000).astype(np.float32) * 0.3])
    (embeddings,) = loaded.project_audio([states])
    with torch.no_grad():
        word = loaded.embed(torch.tensor(loaded.tokenizer.encode(" owl")))
    assert torch.equal(embeddings[2], word[0]), "the first word behind the first lead is the label's own"


def test_the_command_refuses_what_it_cannot_use(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", "connector", str(clips), "--model", "embedded-blank", "--out"]
    assert cli.run([*command, str(tmp_path)]) == 2
    assert f"{tmp_path}: exists already; choose another folder" in capsys.readouterr().err
    linear = base.load("embedded-blank", device="cpu", connector={"kind": "linear"})
    with pytest.raises(ConfigError, match="is not the embedded model with the connector `mix`"):
        build_label_connector(linear, clips, tmp_path / "start")
    assert not (tmp_path / "start").exists()


def test_a_collection_without_validation_clips_is_fitted_and_not_measured(clips: Path, tmp_path: Path) -> None:
    clips.write_text(clips.read_text().replace(",val,", ",train,"))
    model = base.load("embedded-blank", device="cpu", trim=True)
    report = build_label_connector(model, clips, tmp_path / "start")
    assert (report.clips, report.first, report.event_counts, report.counted) == (60, {}, 0, None)
    assert (tmp_path / "start" / "trained.safetensors").is_file()


@pytest.mark.parametrize(("label", "columns"), [("melody", "music,"), ("word", "speech,en")], ids=["music", "speech"])
def test_a_few_clips_of_one_kind_are_enough(label: str, columns: str, tmp_path: Path) -> None:
    rows = ["path,label,category,language,split"]
    for number in range(3):
        soundfile.write(tmp_path / f"m{number}.wav", np.sin(np.arange(8000) * 0.1 * (number + 1)) * 0.3, 16000)
        rows.append(f"m{number}.wav,{label},{columns},train")
    (tmp_path / "few.csv").write_text("\n".join(rows) + "\n")
    model = base.load("embedded-blank", device="cpu", trim=True)
    report = build_label_connector(model, tmp_path / "few.csv", tmp_path / "start")
    assert (report.clips, report.event_counts) == (3, 0)
    assert base.load(str(tmp_path / "start"), device="cpu").audio_tokens(8000) > 0


def test_clips_whose_labels_say_nothing_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) * 0.1) * 0.3, 16000)
    label = f"{UNINFORMATIVE_LABELS[0]}_1"
    (tmp_path / "few.csv").write_text(f"path,label,category,split\na.wav,{label},sound,train\n")
    model = base.load("embedded-blank", device="cpu", trim=True)
    with pytest.raises(DataError, match="no events can be learnt; add such clips or --scenes"):
        build_label_connector(model, tmp_path / "few.csv", tmp_path / "start")
    assert not (tmp_path / "start").exists()
