"""Stages outside the package: their settings are checked as those of the package, and mistakes are told in one line."""

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.config.stage_kinds import STAGE_CONFIGS, own_kinds, settings_class
from earwise.errors import ConfigError

STAGES = '''
from typing import Literal

from pydantic import Field, model_validator

from earwise.config.stages import GrpoConfig, StageConfig, SupervisedConfig


class Settings(SupervisedConfig):
    """One more key than supervised stages have, under a name that the package once used for another."""

    k: int = Field(3, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.k > self.clips_per_step:
            raise ValueError(f"k {self.k} is more than clips_per_step; lower it")
        return self


class Variant(GrpoConfig):
    kind: str
    min_advantage: float = 0.0


class Closed(GrpoConfig):
    """The kind of the settings is still the one that they are derived from."""


class MyStage:
    settings = Settings


class VariantStage:
    settings = Variant


class ClosedStage:
    settings = Closed


class WithoutSettings:
    pass


class WrongSettings:
    settings = dict


def function(context, config): ...
'''
DATA = {"mixture": [{"manifest": "rows.jsonl"}]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `own.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(STAGES)
    return tmp_path


def recipe(kind: str, **settings: Any) -> Recipe:
    """A recipe of one stage."""
    stage = {"kind": kind, "max_steps": 2, "data": DATA} | settings
    return check_recipe({"recipe": "t", "trackers": [], "stages": [stage]}, "t.yaml")


def test_the_kinds_of_the_package_are_those_of_their_settings() -> None:
    for kind, settings in STAGE_CONFIGS.items():
        annotation = settings.model_fields["kind"].annotation
        assert get_origin(annotation) is Literal and get_args(annotation) == (kind,)


def test_settings_of_a_user_s_own_stage(folder: Path) -> None:
    (stage,) = recipe("own.py:MyStage", k=2, clips_per_step=4).stages
    assert (stage.kind, stage.k, stage.clips_per_step, stage.questions_per_clip) == ("own.py:MyStage", 2, 4, 4)
    assert (stage.short_kind, stage.label, stage.has_loss_on_rows) == ("MyStage", "MyStage", True)
    (variant,) = recipe("own:VariantStage", min_advantage=0.5, name="better").stages
    assert (variant.min_advantage, variant.group_size, variant.label) == (0.5, 8, "better")
    assert variant.samples_completions and not variant.has_loss_on_rows


def test_a_resolved_recipe_with_own_settings_is_read_back_unchanged(folder: Path) -> None:
    before = recipe("own.py:MyStage", k=2)
    dumped = before.model_dump(mode="json")
    assert dumped["stages"][0]["k"] == 2, "recipe.json has the keys of the stage's own settings"
    assert check_recipe(dumped, "recipe.json") == before


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("own.py:MyStage", {"kk": 2}, "unknown key 'stages.0.kk'; did you mean 'k'?"),
        ("own.py:MyStage", {"clip_per_step": 2}, "'stages.0.clip_per_step'; did you mean 'clips_per_step'?"),
        ("own.py:MyStage", {"k": 0}, "stages.0.k: Input should be greater than 0, got 0"),
        ("own.py:MyStage", {"k": 17}, "stages.0: k 17 is more than clips_per_step; lower it"),
        ("own.py:MyStage", {"data": {}}, "stages.0.data.mixture: Field required"),
        ("own.py:MyStag", {}, "stage 'own.py:MyStag' cannot be loaded: no 'MyStag' in 'own.py'; did you mean"),
        ("own.py:function", {}, "stage 'own.py:function' is a function, not a class; see docs/extend/stage.md"),
        ("own.py:WithoutSettings", {}, "stage 'own.py:WithoutSettings' has no settings; give the class `settings = "),
        ("own.py:WrongSettings", {}, "stage 'own.py:WrongSettings' has no settings; give the class `settings = "),
        ("own.py:ClosedStage", {}, "its settings Closed take the kind 'grpo' only; write `kind: str` into the class"),
        ("nowhere.py:MyStage", {}, "stage 'nowhere.py:MyStage' cannot be loaded: there is no file nowhere.py"),
        ("broken.py:MyStage", {}, "broken.py:2: ModuleNotFoundError: No module named 'not_there'; raised for stage"),
        ("mystage", {}, "stages.0.kind 'mystage' is none of sft, grpo, dpo, compress, gkd; name one of them"),
        ("", {}, "stages.0.kind is missing; set it to one of sft, grpo, dpo, compress, gkd"),
        ({"a": 1}, {}, "{'a': 1}\" is none of sft, grpo, dpo, compress"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("own") else None,
)  # fmt: skip
def test_mistakes_are_told_in_one_line(folder: Path, kind: Any, settings: dict[str, Any], message: str) -> None:
    (folder / "broken.py").write_text("x = 1\nimport not_there\n")
    with pytest.raises(ConfigError) as caught:
        recipe(kind, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_old_names_of_the_package_s_keys_are_free_for_own_stages(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`k` is what `stub_groups` was called before; in a stage of one's own it is what its settings say."""
    (folder / "r.yaml").write_text(
        "recipe: r\nstages:\n  - kind: own.py:MyStage\n    k: 2\n    max_steps: 1\n"
        "    data: {mixture: [{manifest: rows.jsonl}]}\n"
        "profiles:\n  more: {stages.0.k: 4}\n"
    )
    assert load_recipe("r.yaml").stages[0].k == 2
    assert load_recipe("r.yaml", profile="more").stages[0].k == 4
    assert load_recipe("r.yaml", overrides=["stages.0.k=5"]).stages[0].k == 5
    assert capsys.readouterr().err == ""


def test_own_kinds_of_anything() -> None:
    assert own_kinds([{"kind": "sft"}, {"kind": "a.py:B"}, {"kind": 3}, "text", {}, {"kind": "m:C"}]) == [
        "a.py:B",
        "m:C",
    ]
    assert own_kinds(None) == own_kinds("a:b") == []


def test_the_settings_class_itself(folder: Path) -> None:
    assert settings_class("own.py:MyStage").__name__ == "Settings"
