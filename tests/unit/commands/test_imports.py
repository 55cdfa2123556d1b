"""What a command imports: nothing that it does not use. A new process counts the modules, not the time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from builders import tone
from earwise.audio import encode_wav
from earwise.models.embedded import base_weights

NEEDS_WEIGHTS = pytest.mark.skipif(
    not (base_weights.cache_dir() / base_weights.BASE / "complete").exists(),
    reason="no base weights in EARWISE_HOME; `make test` fetches them",
)
HEAVY = (
    "accelerate", "datasets", "huggingface_hub", "matplotlib", "mpmath", "pandas", "peft", "scipy",
    "sklearn", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx", "transformers",
    "trl",
)  # fmt: skip
"""Packages and parts of torch that take long to import and have no part in answering a question."""
COUNT = """
import json, sys
from earwise.cli import run
code = run(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "modules": sorted(sys.modules)}, file)
"""
EARLY = "import sys, torch, json; print(json.dumps(sorted(sys.modules)))"


def imported(folder: Path, *arguments: str, stdin: str = "") -> set[str]:
    """The modules of a process that ran one command to its end."""
    out = folder / "modules.json"
    command = [sys.executable, "-c", COUNT, str(out), *arguments]
    process = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=folder, check=False)
    result = json.loads(out.read_text())
    assert result["code"] == 0, process.stderr
    return set(result["modules"])


def heavy(modules: set[str]) -> list[str]:
    """Those of `HEAVY` among some modules."""
    return sorted(name for name in HEAVY if name in modules)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "clip.wav"
    path.write_bytes(encode_wav(tone(1.0), 16000))
    return str(path)


@pytest.mark.parametrize("command", ["ask", "chat", "serve", "evaluate", "train", "build"])
def test_help_imports_neither_torch_nor_numpy(command: str, tmp_path: Path) -> None:
    modules = imported(tmp_path, command, "--help")
    assert not {"torch", "numpy"} & modules
    assert not heavy(modules)


def test_torch_itself_imports_none_of_them() -> None:
    process = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, check=True)
    assert not heavy(set(json.loads(process.stdout)))


@NEEDS_WEIGHTS
def test_a_question_imports_nothing_that_it_does_not_use(tmp_path: Path, clip: str) -> None:
    assert not heavy(imported(tmp_path, "ask", clip, "Which sound is this?", "--choices", "a tone,a dog", "--json"))


@NEEDS_WEIGHTS
def test_a_conversation_imports_nothing_that_it_does_not_use(tmp_path: Path, clip: str) -> None:
    assert not heavy(imported(tmp_path, "chat", clip, stdin="What do you hear?\n"))


@NEEDS_WEIGHTS
def test_an_evaluation_imports_nothing_that_it_does_not_use(tmp_path: Path, clip: str) -> None:
    row = {"id": "1", "audio": [clip], "question": "Which sound?", "choices": ["a tone", "a dog"], "answer": "a tone"}
    (tmp_path / "items.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ("--task", "manifest", "--data", "items.jsonl", "--out", "run", "--no-controls")
    assert not heavy(imported(tmp_path, "evaluate", *arguments))
