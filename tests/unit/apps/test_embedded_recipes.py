"""`make embedded` runs from a labelled collection to the trained model, with weights at test size and a few steps."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from earwise import cli
from earwise.config.recipe import load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.data import manifest
from earwise.models import base
from families.embedded import random_base_weights, write_base_weights, write_recogniser

ROOT = Path(__file__).parents[3]
SOUNDS = {"owl": 300.0, "dog": 900.0, "bell": 2500.0}
VOICES = {"german": 500.0, "english": 1500.0}
STEPS = (
    "stages.*.max_steps=2", "stages.*.clips_per_step=4", "stages.*.questions_per_clip=2",
    "stages.*.optimizer.warmup_steps=0", "stages.*.log_completions_steps=0", "trackers=[]", "model.compute=float32",
    "stages.*.connector_init=none",
)  # fmt: skip
"""Settings of both recipes. The ridge initialisation needs leads of equally many tokens, which a tokenizer of bytes
does not give; it has a test of its own."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base weights and a recogniser at test size, where the real ones are expected."""
    write_base_weights(tmp_path / "home", random_base_weights())
    write_recogniser(tmp_path / "home")
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def write_collection(folder: Path) -> None:
    """Clips of three sounds and of two languages; the last of each four is for validation."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = ["path,label,category,split,group,language,text"]
    for label, pitch in (SOUNDS | VOICES).items():
        for number in range(4):
            time = np.arange(int(16000 * rng.uniform(0.4, 0.9))) / 16000
            name = f"{label}-{number}.wav"
            soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * pitch * time), 16000)
            kind = f"speech,{{}},{label},word {number}" if label in VOICES else "sound,{},,"
            lines.append(f"{name},{label}," + kind.format(f"{'val' if number % 4 == 3 else 'train'},{name}"))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def make_commands(**variables: str) -> list[list[str]]:
    """The arguments of every `earwise` that `make embedded` starts where nothing has been made yet."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "-n", "-o", ".venv/ready-demo", "embedded", "BIN=BIN", f"STEPS={' '.join(STEPS)}", *settings]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    starts = re.findall(r"BIN/earwise ([^;\n]*)", output.replace("\\\n", " "))
    return [shlex.split(start) for start in starts if "--resume" not in start]


def test_make_embedded_runs_from_a_collection_to_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_collection(tmp_path / "clips")
    commands = make_commands(COLLECTION="clips/labels.csv", OUT="out", WORDNET=str(tmp_path))
    assert [command[:2] for command in commands] == [
        ["build", "labels"], ["build", "labels"], ["build", "reading"], ["train", "embedded-aligned"],
        ["build", "connector"], ["build", "words"], ["train", "embedded"],
    ]  # fmt: skip
    for command in commands:
        if command[1] != "reading":  # a folder without WordNet: the part is left out
            assert cli.run([*command, *(["--no-check"] if command[1] == "labels" else [])]) == 0, command
    said = capsys.readouterr().err
    assert "reading.jsonl split=train: no such manifest; left out of the mixture" in said
    assert "align.jsonl category=music: no such row; left out of the mixture" in said

    fields = {row.field for row in manifest.read(tmp_path / "out/data/questions.jsonl")}
    assert {"sound", "language", "words", "first", "instrument"} <= fields
    aligned: Any = base.load("out/aligned/final", device="cpu")
    tuned: Any = base.load("out/tuned/final", device="cpu")
    assert aligned.connector_spec.kind == "mix" and tuned.connector_spec.kind == "labels"
    assert tuned.connector_spec.words is not None
    assert len(list((tmp_path / "out/states").rglob("*.npy"))) >= 20, "clips are encoded once for all stages"


def test_the_recipes_ask_for_rows_that_the_builders_write() -> None:
    builders = {"varied", "yes_no", "open", "caption", "order", "count", "louder", "odd_one_out", "overlap", "presence",
                "before", "longer", "list", "same", "compare", "refusal"}  # fmt: skip
    recipe = load_recipe(PACKAGED_RECIPES / "embedded.yaml")
    sources = recipe.stages[0].data.mixture
    for source in sources:
        assert set(np.atleast_1d(source.where.get("task", "open"))) <= builders
    assert sum(source.weight for source in sources) == pytest.approx(1)
