"""The documentation lists what the code has: the smallest recipe, styles, rewards, defaults."""

import re
from pathlib import Path
from typing import Any

import yaml

from earwise.algorithms.rewards import REWARDS
from earwise.config.recipe import check_recipe
from earwise.prompts import INSTRUCTIONS

TRAINING = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
STAGE = {"data": {"mixture": [{"manifest": "a.jsonl"}]}, "max_steps": 1}


def names(section: str) -> set[str]:
    """First cells of the section's table."""
    text = TRAINING.split(f"### {section}\n")[1].split("\n#")[0]
    return set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))


def value_of(values: Any, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def test_the_smallest_recipe_is_one() -> None:
    recipe = check_recipe(yaml.safe_load(TRAINING.split("```yaml\n")[1].split("```")[0]), "docs")
    assert recipe.stages[0].kind == "grpo" and recipe.eval[0].limit == 100


def test_every_style_and_every_reward_has_a_line() -> None:
    assert names("Styles") == set(INSTRUCTIONS)
    assert names("Rewards") == set(REWARDS)


def test_defaults_are_those_of_the_schema() -> None:
    text = TRAINING.split("### Defaults\n")[1].split("\n#")[0]
    listed = re.findall(r"\| `(?:(\w+): )?([\w.]+)` \| `([^`]+)`", text)
    assert len(listed) > 30
    for kind, key, default in listed:
        stage = check_recipe({"recipe": "r", "stages": [STAGE | {"kind": kind or "sft"}]}, "docs").stages[0]
        assert value_of(stage.model_dump(mode="json"), key) == yaml.safe_load(default), (kind, key)
