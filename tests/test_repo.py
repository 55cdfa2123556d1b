"""The repository as a whole: modules import, recipes parse, tables are complete, layers name every file."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import earwise
from earwise.algorithms.rewards import REWARDS
from earwise.config.recipe import load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES, find_recipe
from earwise.errors import ConfigError
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import TASKS
from earwise.models import registry

ROOT = Path(__file__).parents[1]
OPTIONAL = {"fastapi", "uvicorn", "jiwer"}
MODULES = sorted(module.name for module in pkgutil.walk_packages(earwise.__path__, "earwise."))
RECIPES = sorted(PACKAGED_RECIPES.glob("*.yaml"))


def profiles() -> list[tuple[Path, str | None]]:
    """Every recipe without a profile, and with each of its profiles."""
    pairs: list[tuple[Path, str | None]] = []
    for path in RECIPES:
        named = yaml.safe_load(path.read_text(encoding="utf-8")).get("profiles") or {}
        pairs += [(path, name) for name in (None, *named)]
    return pairs


def arms() -> list[tuple[Path, str]]:
    """Every arm of every recipe."""
    return [
        (path, name) for path in RECIPES for name in yaml.safe_load(path.read_text(encoding="utf-8")).get("arms") or {}
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_has_a_docstring(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"the extra with {error.name} is not installed")
    source = inspect.getsource(module)
    assert module.__doc__ or not source.strip(), "no module docstring"


@pytest.mark.parametrize(("path", "profile"), profiles(), ids=lambda value: getattr(value, "stem", str(value)))
def test_every_recipe_parses_with_every_profile(
    path: Path, profile: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(path, profile=profile)
    assert capsys.readouterr().err == "", "no old keys"
    assert recipe.recipe == path.stem
    assert recipe.model.name in registry.names() or ":" in recipe.model.name


@pytest.mark.parametrize(("path", "arm"), arms(), ids=lambda value: getattr(value, "stem", str(value)))
def test_every_recipe_parses_with_every_arm_at_every_scale(
    path: Path, arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for profile in (None, *(yaml.safe_load(path.read_text(encoding="utf-8")).get("profiles") or {})):
        load_recipe(path, profile=profile, arm=arm)
    assert capsys.readouterr().err == "", "no old keys"


@pytest.mark.parametrize("target", sorted({*registry.loaders().values(), *TASKS.values(), *REWARDS.values()}))
def test_every_entry_of_a_table_is_there_and_documented(target: str) -> None:
    module, _, name = target.partition(":")
    entry = getattr(importlib.import_module(module), name)
    for documented in (entry.load, entry.score, entry.aggregate) if isinstance(entry, Task) else (entry,):
        assert callable(documented)
        assert documented.__doc__


def test_layers_name_every_part_of_the_package() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {part for layer in layers for part in re.split(r"\s*[|:]\s*", layer)}
    parts = {name for name in MODULES if name.count(".") == 1} - {"earwise.apps"}
    # The programs are layers of their own, each with the modules of its package if it is one.
    parts |= {name for name in MODULES if name.startswith("earwise.apps.") and name.count(".") == 2}
    assert parts <= named, f"no layer for {sorted(parts - named)}"


def test_the_makefile_has_every_target_it_names() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert named
    for target in named[1].split():
        assert re.search(rf"^{target}:", text, re.MULTILINE), f"no target {target}"


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_recipes_are_part_of_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["earwise"]
    package = Path(earwise.__path__[0])
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    assert {*PACKAGED_RECIPES.rglob("*.yaml")} <= packaged and len(RECIPES) >= 9


def test_a_packaged_recipe_is_found_by_name_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("r1-aqa", profile="cpu").recipe == "r1-aqa"
    path, base = find_recipe("r1-aqa")
    assert path == PACKAGED_RECIPES / "r1-aqa.yaml" and base == Path(), "manifests start from the working folder"
    assert find_recipe(path)[1] == Path(), "also by its path"
    (tmp_path / "mine.yaml").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert find_recipe("mine.yaml") == (Path("mine.yaml"), Path())
    with pytest.raises(ConfigError, match=r"recipes/r1-aqa\.yaml: no such file; the recipe of the package is named by"):
        load_recipe("recipes/r1-aqa.yaml")
    with pytest.raises(ConfigError, match="did you mean 'r1-aqa'"):
        load_recipe("r1-aqua")
