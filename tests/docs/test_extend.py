"""The pages "Add your own" are complete: every snippet is written to a file as its title says, and its commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwise.models import registry
from earwise.models.family import ModelFamily

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "extend"
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def snippets(page: str) -> list[tuple[str, str]]:
    """Title and text of the titled code blocks of a page, in order."""
    return [(title, text) for _, title, text in BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))]


def write_files(page: str, folder: Path) -> list[str]:
    """Write the page's files into a folder, with two clips; returns its command lines."""
    rate = 16000
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    for name in ("clip.wav", "clip2.wav"):
        soundfile.write(folder / name, tone, rate)
    commands = []
    for title, text in snippets(page):
        if title == "run":
            commands += text.strip().splitlines()
        elif "/" not in title:
            (folder / title).write_text(text, encoding="utf-8")
    return commands


def run_commands(commands: list[str], folder: Path) -> None:
    """Run command lines of `earwise` in a folder as a user would."""
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "earwise"
        done = subprocess.run(
            [sys.executable, "-m", "earwise", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]


def run_tests(folder: Path) -> None:
    """Run the pytest files of a folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.weights
@pytest.mark.parametrize("page", ["reward", "task", "data-source", "stage"])
def test_a_page_works_as_it_stands(page: str, tmp_path: Path) -> None:
    commands = write_files(page, tmp_path)
    assert commands, "the page runs something"
    if list(tmp_path.glob("test_*.py")):
        run_tests(tmp_path)
    run_commands(commands, tmp_path)
    if page == "data-source":
        assert (tmp_path / "birds.jsonl").read_text().count("heron") == 1
    if page == "reward":
        assert "grpo/my_rewards.py:brief" in (tmp_path / "runs" / "brief" / "metrics.jsonl").read_text()
    if page == "stage":
        per_answer, better_only = tmp_path / "runs" / "per-answer", tmp_path / "runs" / "better-only"
        assert '"per_answer/nll"' in (per_answer / "metrics.jsonl").read_text()
        assert '"loss"' in (per_answer / "evaluations.jsonl").read_text(), "the loss on held-out rows"
        assert (per_answer / "stage-0-PerAnswerStage" / "final").is_dir()
        assert '"grpo/reward"' in (better_only / "metrics.jsonl").read_text()


def test_the_family_of_the_page_is_the_one_that_is_tested() -> None:
    """`tests/unit/models/test_registry.py` runs this family; here the page's file and row are the same."""
    tested = (ROOT / "tests" / "unit" / "models" / "test_registry.py").read_text(encoding="utf-8")
    files = dict(snippets("model-family"))
    code = files["toy_audio_family.py"].partition('"""\n')[2].partition('"""')[2] or files["toy_audio_family.py"]
    assert code.split("\n\n", 1)[1].strip() in tested
    row = eval(files["row in src/earwise/models/registry.py"], vars(registry))  # the page's own text
    assert isinstance(row, ModelFamily) and registry.find(row.name) is None and row.sizes
