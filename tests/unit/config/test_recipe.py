"""Recipes: what overrides what, what is refused and how it is message."""

import re
from pathlib import Path

import pytest

from earwise.config.recipe import check_recipe, load_recipe
from earwise.config.stages import GrpoConfig, SftConfig
from earwise.errors import ConfigError

RECIPE = """
recipe: small
stages:
  - kind: sft
    data: {mixture: [{manifest: a.jsonl}], styles: {open: 1.0}}
    max_steps: 10
  - kind: grpo
    data: {mixture: [{manifest: b.jsonl}]}
    max_steps: 20
    optimizer: {learning_rate: 1.0e-5, max_grad_norm: 0.5}
profiles:
  cpu:
    stages.*.max_steps: 2
    stages.1: {group_size: 4, optimizer: {learning_rate: 3e-4}}
arms:
  think: {stages.0.data.styles: {open: null, think: 1.0}, stages.1.group_size: 2}
  one: {stages.1: null}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_defaults_below_file_below_profile_below_command_line(recipe: Path) -> None:
    plain = load_recipe(recipe)
    assert [stage.max_steps for stage in plain.stages] == [10, 20]
    assert plain.model.name == "embedded"
    cpu = load_recipe(recipe, profile="cpu")
    assert [stage.max_steps for stage in cpu.stages] == [2, 2]
    overridden = load_recipe(recipe, profile="cpu", overrides=["stages.1.max_steps=7", "seed=3"])
    assert [stage.max_steps for stage in overridden.stages] == [2, 7]
    assert overridden.seed == 3


def test_a_mapping_in_a_profile_is_merged_not_replaced(recipe: Path) -> None:
    stage = load_recipe(recipe, profile="cpu").stages[1]
    assert isinstance(stage, GrpoConfig)
    assert stage.group_size == 4
    assert stage.optimizer.learning_rate == 3e-4  # YAML reads 3e-4 as text; the schema makes it a number
    assert stage.optimizer.max_grad_norm == 0.5


def test_numbers_without_a_point_are_numbers(recipe: Path) -> None:
    stage = load_recipe(recipe, overrides=["stages.0.optimizer.learning_rate=2e-6"]).stages[0]
    assert isinstance(stage, SftConfig)
    assert stage.optimizer.learning_rate == 2e-6


def test_a_resolved_recipe_is_read_back_unchanged(recipe: Path) -> None:
    resolved = load_recipe(recipe, profile="cpu")
    assert check_recipe(resolved.model_dump(mode="json"), "again") == resolved


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.1.group_sise=4"], "unknown key 'stages.1.group_sise'; did you mean 'group_size'"),
        (["stages.0.data.stiles={}"], "unknown key 'stages.0.data.stiles'"),
        (["stages.1.group_size=1"], "group_size"),
        (["stages.1.group_size=many"], "many"),
        (["stages.5.max_steps=1"], "index from 0"),
        (["stages.0.max_steps"], "key=value"),
        (["seed.sub=1"], "seed"),
        (["stages.0.kind=dance"], "dance"),
        (["stages.0.optimizer.learning_rate=-1"], "greater than 0"),
        (["stages.0.optimizer.learning_rate=.nan"], "learning_rate"),
        (["stages=[]"], "stages"),
        (["stages.1.loss_type=ppo"], "loss_type"),
        (["stages.0.data.mixture=[]"], "mixture"),
        (["stages.0.data.mixture.0.weight=0"], "weight"),
    ],
)
def test_wrong_settings_are_named(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides=overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.0.max_steps=two",
            'stages.0.max_steps: Input should be a valid integer, unable to parse string as an integer, got "two"',
        ),
        (
            "stages.0.kind=per_anser",
            "stages.0.kind 'per_anser' is none of sft, grpo, dpo, compress, gkd; "
            "name one of them or your own as file.py:name",
        ),
        (
            "stages.0.kind=comprss",
            "stages.0.kind 'comprss' is none of sft, grpo, dpo, compress, gkd; did you mean 'compress'?",
        ),
        ("stages.0.kind=", "stages.0.kind is missing; set it to one of sft, grpo, dpo, compress, gkd"),
        ("stages.0={max_steps: two, seeds: 1}", None),
    ],
)
def test_problems_are_counted_and_blamed_where_they_are(recipe: Path, override: str, message: str | None) -> None:
    """A value of the command line is blamed on it, unless the file is wrong too; only real problems are counted."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides=[override])
    if message is None:
        assert str(caught.value).endswith(', got "two" (and 1 more)')
    else:
        assert str(caught.value) == f"command line: {message}"
    recipe.write_text(RECIPE.replace("max_steps: 20", "max_steps: twenty"))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(recipe))}: stages\.1\.max_steps: .*\"twenty\"$"):
        load_recipe(recipe, overrides=["stages.0.max_steps=3"])


@pytest.mark.parametrize("text", ["", "- a list", "recipe: [unclosed", "recipe: x\n\tstages: y", "just words"])
def test_files_that_are_no_recipe_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_recipe(path)


def test_unknown_profile_lists_the_known(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="none of cpu"):
        load_recipe(recipe, profile="gpu")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_cispo_needs_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "recipe: r\nstages: [{kind: grpo, data: {mixture: [{manifest: a.jsonl}]}, max_steps: 1, loss_type: cispo}]\n"
    )
    with pytest.raises(ConfigError, match=r"stages\.0: loss_type cispo needs epsilon_high"):
        load_recipe(path)
    assert load_recipe(path, overrides=["stages.0.epsilon_high=5"]).stages[0].epsilon_high == 5  # type: ignore[union-attr]


def test_an_arm_is_applied_after_the_profile_and_null_removes(recipe: Path) -> None:
    plain, think = load_recipe(recipe, profile="cpu"), load_recipe(recipe, profile="cpu", arm="think")
    assert plain.stages[0].data.styles == {"open": 1.0}
    assert think.stages[0].data.styles == {"think": 1.0}
    assert isinstance(think.stages[1], GrpoConfig) and think.stages[1].group_size == 2
    assert think.stages[1].optimizer.learning_rate == 3e-4
    assert load_recipe(recipe, arm="think", overrides=["stages.1.group_size=5"]).stages[1].group_size == 5  # type: ignore[union-attr]
    assert len(load_recipe(recipe, arm="one").stages) == 1
    named = ["stages.0.name=first", "stages.first.max_steps=4"]
    assert load_recipe(recipe, overrides=named).stages[0].max_steps == 4
    with pytest.raises(ConfigError, match="a stage's name"):
        load_recipe(recipe, overrides=["stages.second.max_steps=4"])
    with pytest.raises(ConfigError, match="arm 'thnk' is none of think, one"):
        load_recipe(recipe, arm="thnk")


def test_xs_cot_does_not_train_on_its_held_out_rows() -> None:
    recipe = load_recipe("xs-cot")
    held_out = {(held_out.manifest, held_out.where["split"]) for held_out in recipe.eval}
    assert held_out == {("xs-cot/manifest.jsonl", "val")}
    for stage in recipe.stages[1:]:
        (source,) = stage.data.mixture
        assert (source.manifest, source.where) == ("xs-cot/manifest.jsonl", {"split": "train"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_rollout_error": "retry"}, "on_rollout_error 'retry' does nothing here; it is for a rollout_server"),
        ({"rollout_server": "http://h/v1#m", "rollout_retry_minutes": 3}, "it is for on_rollout_error: retry"),
        ({"beta": 0.0, "kl_estimator": "k1"}, "kl_estimator 'k1' does nothing here; beta 0 leaves the KL"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 2.0}, "delta 2.0 does nothing here; cispo bounds"),
    ],
    ids=["error without server", "minutes without retry", "estimator without KL", "delta in cispo"],
)
def test_settings_of_grpo_that_cannot_act_are_refused(settings: dict, message: str) -> None:
    stage = {"kind": "grpo", "data": {"mixture": [{"manifest": "a.jsonl"}]}, "max_steps": 1} | settings
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_recipe({"recipe": "r", "stages": [stage]}, "test")
