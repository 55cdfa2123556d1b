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
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.evaluate.task import TASKS, Task
from earwise.models.base import MODELS

ROOT = Path(__file__).parents[1]
OPTIONAL = {"accelerate", "peft", "fastapi", "uvicorn", "jiwer", "tensorboard"}
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
def test_every_recipe_parses_with_every_profile(path: Path, profile: str | None) -> None:
    recipe = load_recipe(path, profile=profile)
    assert recipe.recipe == path.stem
    assert recipe.model.name in MODELS or ":" in recipe.model.name


@pytest.mark.parametrize(("path", "arm"), arms(), ids=lambda value: getattr(value, "stem", str(value)))
def test_every_recipe_parses_with_every_arm_at_every_scale(path: Path, arm: str) -> None:
    for profile in (None, *(yaml.safe_load(path.read_text(encoding="utf-8")).get("profiles") or {})):
        load_recipe(path, profile=profile, arm=arm)


@pytest.mark.parametrize("target", sorted({*MODELS.values(), *TASKS.values(), *REWARDS.values()}))
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
    parts = {name for name in MODULES if name.count(".") == 1}
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
