"""`~` in every option and recipe key that is a path: the user's home folder, also where no shell expands it."""

from pathlib import Path

import click
import pytest

from earwise.cli import app, run
from earwise.commands.paths import NameOrPath, UserPath
from earwise.config.recipe import load_recipe
from earwise.data import manifest
from earwise.data.manifest_path import manifest_path

NAMES_OF_FILES = {
    "model", "data", "recipe", "manifests", "source", "rows", "benchmarks", "blind_model", "collections", "items",
    "captioner", "policy", "name",
}  # fmt: skip
"""Options and arguments that may be a path or another name."""
OTHER_NAMES = {("build", "source", "name"), ("build", "xs-cot", "source"), ("serve", "name"), ("demo", "recipe")}


def parameters(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Parameter]]:
    """All parameters of a command and of those below it."""
    found = [((*path, str(parameter.name)), parameter) for parameter in command.params]
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            found += parameters(below, (*path, name))
    return found


def test_every_option_that_is_a_path_expands_the_home_folder() -> None:
    for place, parameter in parameters(app):
        if isinstance(parameter.type, click.Path):
            assert isinstance(parameter.type, UserPath), place
        if parameter.name in NAMES_OF_FILES and place not in OTHER_NAMES:
            assert isinstance(parameter.type, NameOrPath | UserPath), place


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a manifest, and another folder to work in."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    manifest.write(home / "m.jsonl", manifest.read(manifest_path("starter:val", Path()))[:3])
    return home


def test_commands_take_the_home_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "convert", "~/m.jsonl", "--out=~/again/m.jsonl"]) == 0
    assert run(["build", "check", "~/again/m.jsonl", "--no-listen", "--html=~/page.html"]) == 0
    assert run(["tasks", "--audit", "manifest", "--data=~/m.jsonl", "--audio-root=~/"]) == 0
    assert (home / "page.html").is_file()
    assert "m.jsonl: 3 rows" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


def test_recipe_keys_take_the_home_folder(home: Path) -> None:
    (home / "r.yaml").write_text(
        "recipe: r\nmodel: {name: embedded, weights: ~/weights}\n"
        "stages: [{kind: sft, max_steps: 1, data: {mixture: [{manifest: ~/m.jsonl}]}}]\n"
    )
    recipe = load_recipe("~/r.yaml")
    assert recipe.model.weights == str(home / "weights")
    assert manifest_path(recipe.stages[0].data.mixture[0].manifest, Path("elsewhere")) == home / "m.jsonl"
    assert load_recipe("~/r.yaml", overrides=["model.name=~/other"]).model.name == str(home / "other")
