"""Fixtures of the end-to-end tests: the command line in this process, real clips, a tiny manifest, a trained model."""

from pathlib import Path
from typing import Any

import pytest

from e2e.shell import RECIPE, STARTER, Cli, Done, in_process
from earwise.data import manifest
from earwise.models.embedded import base_weights, preload
from earwise.models.embedded import model as embedded


@pytest.fixture(scope="session")
def cli() -> Cli:
    return in_process


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The default model; base weights with an untrained connector where the package has no trained part yet."""
    if not (base_weights.cache_dir() / base_weights.BASE / "complete").exists():
        pytest.skip("no base weights in EARWISE_HOME; `make test` fetches them")
    if (preload.ASSETS / "trained.safetensors").exists():
        return "embedded"
    folder = tmp_path_factory.mktemp("blank")
    embedded.load_untrained(trim=True).save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def clips() -> list[Path]:
    """The shortest bundled clips."""
    return sorted(STARTER.glob("clips/*.ogg"), key=lambda path: (path.stat().st_size, path.name))[:12]


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six multiple-choice rows of the starter set, about its shortest clips."""
    rows = [row for row in manifest.read(STARTER / "val.jsonl") if len(row.choices) > 2]
    rows.sort(key=lambda row: (row.audio_paths[0].stat().st_size, row.id))
    answers: dict[str, Any] = {}
    for row in rows:  # different answers, so that clips can be shuffled
        answers.setdefault(row.answer[0], row)
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    manifest.write(path, list(answers.values())[:6])
    return path


@pytest.fixture(scope="session")
def recipe(questions: Path, model: str) -> Path:
    path = questions.parent / "tiny.yaml"
    path.write_text(f"model: {{name: {model}}}\n{RECIPE}", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(recipe: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """One whole run of the tiny recipe: SFT, GRPO, measured before and after."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, cli("train", recipe, "--out", out, "--json")
