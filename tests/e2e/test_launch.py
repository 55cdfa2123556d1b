"""`accelerate launch` as documented: two processes, with each engine that runs without a GPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from builders import tiny_qwen2_audio, tone
from child_process import python_path
from e2e.shell import HERE, Cli
from earwise.config.recipe_files import LAUNCH_CONFIGS
from earwise.data import manifest
from earwise.types import Audio, Example, Text, Turn

ROOT = HERE.parent.parent
ENGINES = LAUNCH_CONFIGS
COMMON = """
    data: {mixture: [{manifest: rows.jsonl}]}
    pack_tokens: 120
    optimizer: {learning_rate: 1.0e-3}
    max_steps: 2
    trainable: {connector: full, decoder: lora, lora: {r: 2, lora_alpha: 4}}
"""
RECIPE = f"""
recipe: tiny
model: {{name: qwen2_audio, weights: BASE}}
trackers: []
stages:
  - kind: sft
    clips_per_step: 3
    questions_per_clip: 1
{COMMON}
  - kind: grpo
    prompts_per_step: 3
    group_size: 3
    max_new_tokens: 3
    rewards: {{"e2e.shell:vowels": 1.0}}
{COMMON}
eval:
  - {{manifest: rows.jsonl, max_new_tokens: 2, limit: 2}}
on_overlap: warn
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two stages on a tiny model; its rows have one clip, two clips or none."""
    folder = tmp_path_factory.mktemp("launch")
    tiny_qwen2_audio(4).save(folder / "base")
    for name, seconds in (("a", 0.4), ("b", 0.7)):
        soundfile.write(folder / f"{name}.wav", tone(seconds, 300.0), 16000)
    rows = []
    for number, clips in enumerate((("a",), ("b",), ("a", "b"), ())):
        turns = (Turn("user", (*(Audio(f"{clip}.wav") for clip in clips), Text("pitch?"))),)
        rows.append(Example(f"r{number}", turns, ("low",), ("low", "high"), root=folder, text_only=not clips))
    manifest.write(folder / "rows.jsonl", rows)
    (folder / "tiny.yaml").write_text(RECIPE.replace("BASE", str(folder / "base")), encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def single_process_rows(recipe: Path) -> list[dict[str, Any]]:
    """The log of a run in one process."""
    from e2e.shell import in_process

    out = recipe.parent / "single"
    result = in_process("train", recipe, "--out", out, "--no-eval")
    assert result.code == 0, result.err
    return metrics_rows(out)


def metrics_rows(out: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def launched(engine: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in two processes under `accelerate launch`."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ENGINES / f"{engine}.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", port, "-m", "earwise", *map(str, arguments)]
    return subprocess.run(
        launch, capture_output=True, text=True, timeout=500, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()},
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_launched_run_equals_a_single_process(
    recipe: Path, single_process_rows: list[dict[str, Any]], engine: str, cli: Cli
) -> None:
    out = recipe.parent / engine
    result = launched(engine, "train", recipe, "--out", out, "--json")
    assert result.returncode == 0, result.stderr[-3000:]
    output = json.loads(result.stdout)
    assert output["final"] == str(out / "final") and len(output["eval"]) == 1, "printed once, by the first process"
    assert result.stderr.count("sft step 1/2") == 1
    rows = metrics_rows(out)
    assert [(row["stage"], row["step"]) for row in rows] == [(row["stage"], row["step"]) for row in single_process_rows]
    for first, second in zip(single_process_rows, rows, strict=True):
        assert second["ids"] == first["ids"]
        for key in ("sft/loss", "grpo/loss", "grpo/reward", "grad_norm"):
            assert second.get(key) == pytest.approx(first.get(key), abs=1e-4), key
    answer = cli("ask", recipe.parent / "a.wav", "pitch?", "--model", out, "--json")
    assert answer.code == 0, answer.err


def test_launched_evaluation_equals_a_single_process(recipe: Path, cli: Cli) -> None:
    """The rows of two processes on one folder, in the same order; only the times differ."""
    rows = [row for row in manifest.read(recipe.parent / "rows.jsonl") if row.audio_paths]
    manifest.write(recipe.parent / "items.jsonl", rows)
    command = ["evaluate", "--data", recipe.parent / "items.jsonl", "--model", recipe.parent / "base", "--batch", 1]
    command += ["--no-controls", "--max-new-tokens", 3, "--json", "--out"]
    result = launched("ddp", *command, recipe.parent / "evaluated-2")
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout)["n"] == 3 and "is finished; the last part writes" in result.stderr
    assert cli(*command, recipe.parent / "evaluated-1").code == 0
    first, second = (
        [
            {**json.loads(line), "seconds": 0}
            for line in (recipe.parent / f"evaluated-{count}" / "samples.jsonl").read_text().splitlines()
        ]
        for count in (1, 2)
    )
    assert first == second and len(first) == 3


def test_launcher_that_starts_a_single_process_is_detected(recipe: Path, cli: Cli, monkeypatch: Any) -> None:
    """With the environment of `accelerate launch --cpu --num_processes 2`, which starts one process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    result = cli("train", recipe, "--out", recipe.parent / "none")
    assert result.code == 2 and "earwise recipe --path ddp" in result.err
