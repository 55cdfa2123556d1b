"""The code that the documentation tells a reader to run: the README's Python, and every file under examples/."""

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from e2e.shell import STARTER
from earwise.data import manifest

pytestmark = pytest.mark.weights
ROOT = Path(__file__).parents[2]


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_s_python_runs(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if model != "embedded":
        pytest.skip("no trained part in this checkout")
    shutil.copy(STARTER / "clips" / "dog_0.ogg", tmp_path / "dog.ogg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    (line,) = capsys.readouterr().out.splitlines()
    answer, _, probabilities = line.partition(" ")
    assert answer == "dog", line
    assert next(iter(ast.literal_eval(probabilities))) == "dog", "the most probable option comes first"


def test_own_sounds(model: str, tmp_path: Path) -> None:
    """A folder of classes of bundled clips: two steps of training, then the held-out questions with and without
    their audio."""
    if model != "embedded":
        pytest.skip("no trained part in this checkout")
    clips: dict[str, set[Path]] = {}
    for row in [*manifest.read(STARTER / "train.jsonl"), *manifest.read(STARTER / "val.jsonl")]:
        if row.meta.get("field") == "instrument":
            clips.setdefault(row.meta["label"], set()).add(row.audio_paths[0])
    for label in sorted(clips, key=lambda name: (-len(clips[name]), name))[:6]:
        folder = tmp_path / "sounds" / label
        folder.mkdir(parents=True)
        for path in sorted(clips[label])[:8]:
            shutil.copy(path, folder)
    figures = import_file(ROOT / "examples" / "own_sounds.py").main(tmp_path / "sounds", tmp_path / "out", steps=2)
    assert figures["n"] > 0 and figures["blind_accuracy"] is not None
    rows = [json.loads(line) for line in (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
