"""The documentation lists what the code has: the smallest recipe, styles, rewards, keys of recipes with defaults."""

import re
import sys
import textwrap
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from earwise.algorithms.rewards import REWARDS
from earwise.config.overrides import lay_over
from earwise.config.recipe import check_recipe
from earwise.config.variants import compose, take_definitions
from earwise.prompts import INSTRUCTIONS

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
REWARDS_PAGE = (ROOT / "docs" / "reference" / "rewards.md").read_text(encoding="utf-8")
KINDS = ("sft", "grpo", "dpo", "compress", "gkd")
STAGE = {"data": {"mixture": [{"manifest": "a.jsonl"}]}, "max_steps": 1}


def names(section: str) -> set[str]:
    """First cells of the section's table."""
    text = REWARDS_PAGE.split(f"## {section}\n")[1].split("\n#")[0]
    return set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))


def value_of(values: Any, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def test_the_smallest_recipe_is_one() -> None:
    recipe = check_recipe(yaml.safe_load(RECIPES.split("```yaml\n")[1].split("```")[0]), "docs")
    assert recipe.stages[0].kind == "grpo" and recipe.eval[0].limit == 100


def test_every_style_and_every_reward_has_a_line() -> None:
    assert names("Prompt styles") == set(INSTRUCTIONS)
    assert names("Rewards") == set(REWARDS)


def test_tables_of_recipe_keys_are_generated_from_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import recipe_reference

    assert recipe_reference.render(RECIPES) == RECIPES, "run python scripts/recipe_reference.py"
    assert set(re.findall(r"<!-- table ([\w.]+) -->", RECIPES)) == {
        *recipe_reference.TABLES,
        "renamed",
        "renamed_values",
    }
    sys.modules.pop("recipe_reference")


def test_defaults_are_those_of_the_schema() -> None:
    places = {"stage": "", "data": "data.", "trainable": "trainable.", "trainable.lora": "trainable.lora."}
    places |= {name: f"{name}." for name in ("optimizer", "curriculum", "curriculum.band")}
    places |= dict.fromkeys(KINDS, "")
    num_compared = 0
    for name, text in re.findall(r"<!-- table ([\w.]+) -->\n(.*?)<!-- end -->", RECIPES, re.DOTALL):
        if name not in places:
            continue
        kind = name if name in KINDS else "sft"
        styles = {"styles": {"think": 1.0}} if kind == "compress" else {}
        raw = STAGE | {"kind": kind, "data": {"mixture": [{"manifest": "a.jsonl"}]} | styles}
        raw |= {"teacher": {"name": "embedded"}} if kind == "gkd" else {}
        stage = check_recipe({"recipe": "r", "stages": [raw]}, "docs").stages[0].model_dump(mode="json")
        for key, default in re.findall(r"^\| `([\w.]+)` \| [^|]+ \| `([^`]+)` \|", text, re.MULTILINE):
            if key in ("max_steps", "teacher"):  # a stage needs a length, and gkd a teacher
                continue
            num_compared += 1
            assert value_of(stage, places[name] + key) == yaml.safe_load(default), (name, key)
    assert num_compared > 60


def test_stages_of_the_training_page_are_valid() -> None:
    page = (ROOT / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^    ```yaml\n(.*?)^    ```$", page, re.MULTILINE | re.DOTALL)
    kinds = [
        check_recipe({"recipe": "r", "stages": yaml.safe_load(textwrap.dedent(snippet))}, "docs").stages[0].kind
        for snippet in snippets
    ]
    assert kinds == list(KINDS)


def test_example_of_arms_is_valid() -> None:
    snippet = next(text for text in re.findall(r"```yaml\n(.*?)```", RECIPES, re.DOTALL) if "variants:" in text)
    data = {"mixture": [{"manifest": "a.jsonl"}], "styles": {"think": 1.0}}
    stages: list[dict[str, Any]] = [
        {"kind": "sft", "name": "warm-up", "data": data, "max_steps": 1},
        {"kind": "grpo", "name": "grpo", "data": data, "max_steps": 1, "max_minutes": 1},
    ]
    raw = {"recipe": "r", "stages": [deepcopy(stage) for stage in stages]} | yaml.safe_load(snippet)
    definitions = take_definitions(raw, "docs")
    lay_over(raw, compose(definitions, "profiles", "cpu-compare", "docs"), "docs")
    lay_over(raw, compose(definitions, "arms", "rl-implicit-longer", "docs"), "docs")
    (stage,) = check_recipe(raw, "docs").stages
    assert (stage.max_steps, stage.max_minutes, stage.data.styles) == (4000, None, {"answer": 1.0})


def test_the_command_line_reference_has_every_command_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names only: how help is laid out depends on the version of click. `make docs` writes the page."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import cli_reference

    from earwise.cli import app

    page = cli_reference.PAGE.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^##+ (earwise[\w -]*)\n\n```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert sections.keys() == dict(cli_reference.commands(app, "earwise")).keys(), "run python scripts/cli_reference.py"
    for name, command in cli_reference.commands(app, "earwise"):
        options = {
            option
            for parameter in command.params
            if not getattr(parameter, "hidden", False)
            for option in parameter.opts
            if option.startswith("--")
        }
        assert not {option for option in options if option not in sections[name]}, name
    sys.modules.pop("cli_reference")
