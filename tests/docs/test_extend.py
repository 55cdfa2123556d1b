"""The pages "Add your own" are complete: every snippet is written to a file as its title says, and its commands run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import earwise
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


def run_commands(commands: list[str], folder: Path, package: Path | None = None) -> None:
    """Run command lines of `earwise` in a folder as a user would, with the package at `package` if it is given."""
    program = f"import sys; sys.path.insert(0, {str(package)!r}); " if package else ""
    program += "from earwise.cli import main; main()"
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "earwise"
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]


def run_tests(folder: Path) -> None:
    """Run the pytest files of a folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.weights
@pytest.mark.parametrize("page", ["reward", "task", "data-source"])
def test_a_page_works_as_it_stands(page: str, tmp_path: Path) -> None:
    commands = write_files(page, tmp_path)
    assert commands, "the page runs something"
    if list(tmp_path.glob("test_*.py")):
        run_tests(tmp_path)
    run_commands(commands, tmp_path)
    if page == "data-source":
        assert (tmp_path / "birds.jsonl").read_text().count("heron") == 1
    if page == "reward":
        assert "grpo/my_rewards:brief" in (tmp_path / "runs" / "brief" / "metrics.jsonl").read_text()


@pytest.mark.weights
def test_the_stage_of_the_page_trains(tmp_path: Path) -> None:
    """The additions are made to a copy of the package."""
    package = tmp_path / "package" / "earwise"
    shutil.copytree(Path(earwise.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    commands = write_files("stage", tmp_path)
    for title, text in snippets("stage"):
        if not title.startswith("src/earwise/"):
            continue
        path = package / title.removeprefix("src/earwise/")
        if path.name == "stages.py":
            before, union, after = path.read_text().partition("StageConfig = Annotated[")
            rest = after.partition('Field(discriminator="kind")]')[2]
            assert union and rest is not None
            path.write_text(before + text + rest)
        elif path.name == "table.py":
            before, start, after = path.read_text().partition("STAGES = {\n")
            path.write_text(before + start + text + after)
        else:
            path.write_text(text)
    run_commands(commands, tmp_path, package.parent)
    assert '"per_answer/loss"' in (tmp_path / "runs" / "per-answer" / "metrics.jsonl").read_text()


def test_the_family_of_the_page_is_the_one_that_is_tested() -> None:
    """`tests/unit/models/test_registry.py` runs this family; here the page's file and row are the same."""
    tested = (ROOT / "tests" / "unit" / "models" / "test_registry.py").read_text(encoding="utf-8")
    files = dict(snippets("model-family"))
    code = files["toy_audio_family.py"].partition('"""\n')[2].partition('"""')[2] or files["toy_audio_family.py"]
    assert code.split("\n\n", 1)[1].strip() in tested
    row = eval(files["row in src/earwise/models/registry.py"], vars(registry))  # the page's own text
    assert isinstance(row, ModelFamily) and registry.find(row.name) is None and row.sizes
