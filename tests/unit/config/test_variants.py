"""Arms and profiles are composed by name: left to right, removals last, and never by the order of a YAML mapping."""

import random
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml

from earwise.config.recipe import Recipe, load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.errors import ConfigError

RECIPES = sorted(PACKAGED_RECIPES.glob("*.yaml"))

BASE = """
recipe: small
stages:
  - {kind: sft, name: warm-up, data: {mixture: [{manifest: a.jsonl}], styles: {think: 1.0}}, max_steps: 10}
  - {kind: grpo, name: grpo, data: {mixture: [{manifest: b.jsonl}], styles: {think: 1.0}}, max_steps: 20}
eval: [{manifest: c.jsonl, style: think}]
"""
NAMED = """
variants:
  no-warm-up: {stages.warm-up: null}
  implicit:
    stages.warm-up.data.styles: {think: null, answer: 1.0}
    stages.grpo: {data: {styles: {think: null, answer: 1.0}}, group_size: 4}
    eval.0.style: answer
arms:
  all: []
  rl-implicit: [no-warm-up, implicit]
  implicit-rl: [implicit, no-warm-up]
  longer: [rl-implicit, {stages.grpo.max_steps: 30}, {stages.grpo.group_size: 6}]
profiles:
  cpu: {stages.*.max_steps: 2, variants.implicit.stages.warm-up.max_steps: 3, arms.rl-implicit.eval.0.limit: 5}
  cpu-compare: [cpu, {stages.grpo.max_steps: 8}]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(BASE + text)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return written(tmp_path, NAMED)


def stage(resolved: Recipe, name: str) -> dict[str, Any]:
    return next(each for each in resolved.model_dump(mode="json")["stages"] if each["name"] == name)


def test_names_in_a_list_are_laid_over_each_other_from_left_to_right(recipe: Path) -> None:
    assert [each.name for each in load_recipe(recipe, arm="all").stages] == ["warm-up", "grpo"]
    longer = load_recipe(recipe, arm="longer")
    assert [each.name for each in longer.stages] == ["grpo"]
    assert stage(longer, "grpo")["max_steps"] == 30
    assert stage(longer, "grpo")["group_size"] == 6  # 4 by the variant, then 6
    assert stage(longer, "grpo")["data"]["styles"] == {"answer": 1.0}
    assert longer.eval[0].style == "answer"


def test_settings_of_a_removed_stage_are_ignored_before_and_after_the_removal(recipe: Path) -> None:
    first, last = load_recipe(recipe, arm="rl-implicit"), load_recipe(recipe, arm="implicit-rl")
    assert first == last
    assert [each.name for each in first.stages] == ["grpo"]


def test_numbers_count_the_stages_that_were_there_before_the_removal(tmp_path: Path) -> None:
    for settings in permutations(["stages.0: null", "stages.1.max_steps: 7", "stages.1.group_size: 3"]):
        resolved = load_recipe(written(tmp_path, f"arms: {{odd: {{{', '.join(settings)}}}}}"), arm="odd")
        assert [each.name for each in resolved.stages] == ["grpo"]
        assert stage(resolved, "grpo")["max_steps"] == 7 and stage(resolved, "grpo")["group_size"] == 3


def test_a_stage_removed_twice_is_removed_once(tmp_path: Path) -> None:
    path = written(tmp_path, "arms: {twice: [{stages.warm-up: null}, {stages: {0: null}}, {stages.0.max_steps: 3}]}")
    assert [each.name for each in load_recipe(path, arm="twice").stages] == ["grpo"]


def test_a_profile_extends_another_and_changes_variants_and_arms_at_its_scale(recipe: Path) -> None:
    compare = load_recipe(recipe, profile="cpu-compare")
    assert [each.max_steps for each in compare.stages] == [2, 8]
    implicit_rl = load_recipe(recipe, profile="cpu-compare", arm="implicit-rl")
    assert stage(implicit_rl, "grpo")["max_steps"] == 8 and implicit_rl.eval[0].limit is None
    longer = load_recipe(recipe, profile="cpu", arm="longer")  # what names a changed arm inherits the change
    assert longer.eval[0].limit == 5


def test_the_general_comes_before_the_special_in_whatever_order_it_is_written(tmp_path: Path) -> None:
    settings = {
        "stages.grpo.max_steps": "5",
        "stages.*.max_steps": "2",
        "eval.0.limit": "4",
        "eval": "[{manifest: d.jsonl}]",
    }
    for keys in permutations(settings):
        text = ", ".join(f"{key}: {settings[key]}" for key in keys)
        resolved = load_recipe(written(tmp_path, f"profiles: {{cpu: {{{text}}}}}"), profile="cpu")
        assert [each.max_steps for each in resolved.stages] == [2, 5]
        assert (resolved.eval[0].manifest, resolved.eval[0].limit) == ("d.jsonl", 4)


def test_one_list_in_two_places_of_a_file_is_changed_in_one(tmp_path: Path) -> None:
    path = written(tmp_path, "profiles: {cpu: {stages.*.data.mixture: [{manifest: d.jsonl}]}}")
    resolved = load_recipe(path, profile="cpu", overrides=["stages.0.data.mixture.0.manifest=e.jsonl"])
    assert [each.data.mixture[0].manifest for each in resolved.stages] == ["e.jsonl", "d.jsonl"]


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ("arms: {a: [implict]}\nvariants: {implicit: {}}", "is no arm and no variant; did you mean 'implicit'?"),
        ("arms: {a: [b], b: [c], c: [b]}", "arms.a names itself (b -> c -> b)"),
        ("arms: {a: [a]}", "arms.a names itself (a -> a)"),
        ("arms: {a: b, b: {}}", "arms.a: 'b' is no mapping of settings"),
        ("arms: {a: [3]}", "arms.a: 3 is no mapping of settings"),
        ("arms: {a: {}}\nvariants: {a: {}}", "'a' is under variants: and under arms:; rename one of the two"),
        ("arms: [a]", "arms: is not a mapping from names to settings"),
        ("arms: {b: {}}", "arm 'a' is none of b"),
        ("arms: {aa: {}}", "arm 'a' is none of aa; did you mean 'aa'?"),
        ("arms: {a: {arms.b.seed: 3}, b: {}}", "unknown key 'arms'"),
    ],
)  # fmt: skip
def test_what_cannot_be_composed_is_refused_in_one_line(tmp_path: Path, definitions: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(written(tmp_path, definitions), arm="a")
    assert message in str(caught.value)
    assert "small.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_profile_that_changes_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "arms: {implicit: {}}\nprofiles: {cpu: {arms.implict.seed: 3}}")
    with pytest.raises(ConfigError, match=r"arms\.implict\.seed: no arm 'implict'; did you mean 'implicit'"):
        load_recipe(path, profile="cpu")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_leans_on_merging_by_a_yaml_library(path: Path) -> None:
    assert "<<" not in path.read_text(encoding="utf-8")


def shuffled(value: Any, order: random.Random) -> Any:
    """The same data, every mapping in another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(element, order) for element in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_order_of_mappings_in_a_recipe_means_nothing(path: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms = sorted(raw.get("arms") or {})
    reordered = tmp_path / path.name
    for seed in range(3):
        order = random.Random(seed)
        reordered.write_text(yaml.safe_dump(shuffled(raw, order), sort_keys=False))
        for profile in (None, *(raw.get("profiles") or {})):
            for arm in (None, *order.sample(arms, min(4, len(arms)))):
                assert load_recipe(reordered, profile=profile, arm=arm) == load_recipe(path, profile=profile, arm=arm)


SARI = next(path for path in RECIPES if path.stem == "sari")
RL_IMPLICIT = {
    # profile -> manifest of the RL stage, order, prompts per step, new tokens in training, new tokens in measuring
    None: ("sari/rl.jsonl", 16, 512, 512),
    "cpu": ("runs/data-demo/sari/rl.jsonl", 4, 160, 160),
    "cpu-compare": ("runs/sari/rl.jsonl", 8, 16, 16),
}


@pytest.mark.parametrize("profile", RL_IMPLICIT)
@pytest.mark.parametrize("order", ["sorted", "shuffled", "banded", "online"])
def test_arms_of_sari_without_warm_up_are_what_they_were_before_they_were_composed_by_name(
    profile: str | None, order: str
) -> None:
    resolved = load_recipe(SARI, profile=profile, arm=f"rl-implicit-{order}")
    manifest, prompts, new_tokens, new_tokens_measured = RL_IMPLICIT[profile]
    assert [each.name for each in resolved.stages] == ["grpo"]
    grpo = stage(resolved, "grpo")
    assert grpo["data"]["mixture"][0]["manifest"] == manifest
    assert grpo["data"]["styles"] == {"answer": 1.0}
    assert grpo["rewards"] == {"accuracy": 1.0, "format_answer": 1.0}
    assert grpo["curriculum"]["order"] == {"sorted": "easy_to_hard"}.get(order, order)
    assert (grpo["prompts_per_step"], grpo["max_new_tokens"]) == (prompts, new_tokens)
    assert (resolved.eval[0].style, resolved.eval[0].max_new_tokens) == ("answer", new_tokens_measured)


@pytest.mark.parametrize("arm", ["sft-unstructured-sorted", "sft-unstructured-banded", "sft-unstructured-none"])
def test_free_chains_of_the_profile_reach_every_arm_that_thinks_freely(arm: str) -> None:
    manifests = {
        profile: stage(load_recipe(SARI, profile=profile, arm=arm), "warm-up")["data"]["mixture"][0]["manifest"]
        for profile in (None, "cpu", "cpu-compare")
    }
    assert manifests == {
        None: "sari/sft-unstructured.jsonl",
        "cpu": "runs/data-demo/sari/sft-unstructured.jsonl",
        "cpu-compare": "runs/sari/sft-unstructured.jsonl",
    }


def test_sari_has_the_28_arms_of_its_entry_in_the_papers_table() -> None:
    assert len(yaml.safe_load(SARI.read_text(encoding="utf-8"))["arms"]) == 28


def test_lora_of_r1_aqa_is_its_full_baseline_with_other_trained_parts() -> None:
    path = next(path for path in RECIPES if path.stem == "r1-aqa")
    full, lora = (load_recipe(path, arm=arm).model_dump(mode="json")["stages"][0] for arm in ("sft-full", "sft-lora"))
    assert {key for key in full if full[key] != lora[key]} == {"trainable", "optimizer"}
    trained = {part: lora["trainable"][part] for part in ("encoder", "connector", "decoder")}
    assert trained == {"encoder": "frozen", "connector": "full", "decoder": "lora"}
    assert (lora["optimizer"]["learning_rate"], lora["optimizer"]["connector_learning_rate"]) == (2.0e-4, 5.0e-6)
