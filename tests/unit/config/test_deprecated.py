"""Old recipe keys: each still works and prints one line; an old key beside its new one is refused."""

from pathlib import Path
from typing import Any

import pytest

from earwise.config.deprecated import RENAMED_KEYS, RENAMED_VALUES, with_new_names
from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.errors import ConfigError

OLD_RECIPE = """
recipe: old
model: {name: embedded-blank, decoder_start: random}
stages:
  - kind: sft
    name: first
    data: {mixture: [{manifest: a.jsonl}], by_size: true, temperature: 2.0}
    start: ridge
    show_every: 7
    max_steps: 10
    save_every: 3
    keep_checkpoints: 2
    checkpoint_activations: true
    on_bad_loss: skip
    max_bad_steps: 4
    optimizer: {lr: 1.0e-5, encoder_lr: 1.0e-6, connector_lr: 1.0e-7, schedule: cosine, grad_clip: 0.5}
    trainable: {encoder: lora, lora: {r: 4, alpha: 8, targets: [q_proj]}}
  - kind: grpo
    name: second
    data: {mixture: [{manifest: b.jsonl}]}
    max_steps: 20
    log_samples_every: 3
    curriculum: {order: online, explore: 0.3, band: {low: 1, high: 2, of: 4}}
    sampler: http://127.0.0.1:8000/v1#m
    sampler_refresh: {how: weights, every: 5, folder: /tmp/versions}
    on_sampler_error: wait
    sampler_wait_minutes: 2
    rewards: {judge: 1.0}
    judge: {server: "http://127.0.0.1:8001/v1#j", points: 9}
  - kind: compress
    name: third
    data: {mixture: [{manifest: c.jsonl}], styles: {think: 1.0}}
    max_steps: 5
    pieces: sentences
    k: 1
    group: 2
    rate: 3.0
    measure_every: 8
  - kind: compress
    name: fourth
    data: {mixture: [{manifest: c.jsonl}], styles: {think: 1.0}}
    max_steps: 5
    every_steps: 6
profiles:
  cpu: {stages.first.optimizer.lr: 2.0e-4, "stages.*.save_every": 1}
  nested: {stages: {second: {sampler_refresh: {every: 7}}}}
arms:
  other: {stages.third: {rate: 5.0}, stages.0: {optimizer: {schedule: constant}}}
"""
NEW_RECIPE = """
recipe: old
model: {name: embedded-blank, decoder_init: random}
stages:
  - kind: sft
    name: first
    data: {mixture: [{manifest: a.jsonl}], weight_by_size: true, mixture_temperature: 2.0}
    connector_init: ridge
    log_completions_steps: 7
    max_steps: 10
    save_steps: 3
    save_total_limit: 2
    gradient_checkpointing: true
    on_nonfinite_loss: skip
    max_skipped_steps: 4
    optimizer:
      learning_rate: 1.0e-5
      encoder_learning_rate: 1.0e-6
      connector_learning_rate: 1.0e-7
      lr_scheduler_type: cosine
      max_grad_norm: 0.5
    trainable: {encoder: lora, lora: {r: 4, lora_alpha: 8, target_modules: [q_proj]}}
  - kind: grpo
    name: second
    data: {mixture: [{manifest: b.jsonl}]}
    max_steps: 20
    log_completions_steps: 3
    curriculum: {order: online, exploration: 0.3, band: {low: 1, high: 2, attempts: 4}}
    rollout_server: http://127.0.0.1:8000/v1#m
    weight_sync: {method: weights, steps: 5, folder: /tmp/versions}
    on_rollout_error: retry
    rollout_retry_minutes: 2
    rewards: {judge: 1.0}
    judge: {server: "http://127.0.0.1:8001/v1#j", max_score: 9}
  - kind: compress
    name: third
    data: {mixture: [{manifest: c.jsonl}], styles: {think: 1.0}}
    max_steps: 5
    unit: sentences
    stub_groups: 1
    words_per_group: 2
    units_per_epoch: 3.0
    eval_steps: 8
  - kind: compress
    name: fourth
    data: {mixture: [{manifest: c.jsonl}], styles: {think: 1.0}}
    max_steps: 5
    steps_per_unit: 6
profiles:
  cpu: {stages.first.optimizer.learning_rate: 2.0e-4, "stages.*.save_steps": 1}
  nested: {stages: {second: {weight_sync: {steps: 7}}}}
arms:
  other: {stages.third: {units_per_epoch: 5.0}, stages.0: {optimizer: {lr_scheduler_type: constant}}}
"""
NUM_OLD_KEYS = sum(map(len, RENAMED_KEYS.values()))
NUM_OLD_VALUES = sum(map(len, RENAMED_VALUES.values()))


@pytest.fixture
def recipes(tmp_path: Path) -> tuple[Path, Path]:
    """The same recipe under old and under new names."""
    paths = tmp_path / "old.yaml", tmp_path / "new.yaml"
    for path, text in zip(paths, (OLD_RECIPE, NEW_RECIPE), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


@pytest.mark.parametrize(
    ("profile", "arm"), [(None, None), ("cpu", None), ("nested", None), (None, "other"), ("cpu", "other")]
)
def test_a_recipe_with_old_keys_is_the_recipe_with_new_keys(
    recipes: tuple[Path, Path], profile: str | None, arm: str | None
) -> None:
    old, new = (load_recipe(path, profile=profile, arm=arm) for path in recipes)
    assert old == new


def test_each_old_key_warns_once(recipes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    old_path, new_path = recipes
    load_recipe(new_path, profile="cpu", arm="other")
    assert capsys.readouterr().err == ""
    load_recipe(old_path, profile="cpu", arm="other")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) == NUM_OLD_KEYS + NUM_OLD_VALUES, "the recipe uses each old name at least once"
    assert all(line.startswith(f"warning: {old_path}: ") and "one more release" in line for line in lines)
    assert any("stages.*.optimizer.lr is now called learning_rate" in line for line in lines)


def test_old_keys_work_on_the_command_line(recipes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    stage: Any = load_recipe(recipes[1], overrides=["stages.0.optimizer.lr=3e-4", "stages.*.save_every=9"]).stages[0]
    assert stage.optimizer.learning_rate == 3e-4 and stage.save_steps == 9
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" is now")[0] for line in lines] == [
        "warning: command line: stages.*.optimizer.lr", "warning: command line: stages.*.save_every",
    ]  # fmt: skip


def test_a_run_that_an_earlier_version_recorded_is_read(
    recipes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier version recorded `log_samples_every` and `show_every` of every supervised stage, used only one."""
    new = load_recipe(recipes[1])
    stages = [with_old_names(stage.model_dump(mode="json"), f"stages.{stage.kind}") for stage in new.stages]
    assert stages[0]["show_every"] == 7 and stages[1]["log_samples_every"] == 3
    stages[0]["log_samples_every"] = stages[2]["log_samples_every"] = 10
    recorded = new.model_dump(mode="json") | {"stages": stages}
    recorded["model"]["decoder_start"] = recorded["model"].pop("decoder_init")
    assert check_recipe(recorded, "recipe.json") == new
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.json" in line and "lr" in line, "one line, as nobody wrote this file by hand"


def with_old_names(stage: dict[str, Any], kind: str) -> dict[str, Any]:
    """A recorded stage as the version before the renaming wrote it."""
    kinds = {"stages.sft": "log_samples_every", "stages.compress": "log_samples_every", "stages.grpo": "show_every"}
    old_names = {
        place: {new: old for old, new in renamed.items() if old != kinds.get(kind)}
        for place, renamed in RENAMED_KEYS.items()
    }

    def renamed(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            old_names.get(place, {}).get(key, key): renamed(inner, f"{place}.{key}") for key, inner in value.items()
        }

    old = renamed(stage, "stages.*")
    assert isinstance(old, dict)
    return old


@pytest.mark.parametrize(
    "settings",
    [
        {"stages.0.optimizer": {"lr": 1e-3, "learning_rate": 1e-3}},
        {"stages.0.optimizer": {"learning_rate": 1e-3, "lr": 1e-3}},
        {"stages.0.save_every": 1, "stages.0.save_steps": 1},
    ],
)
def test_an_old_key_beside_its_new_one_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml: .* is the old name of .*; keep one"):
        with_new_names(settings, "r.yaml", lambda _: None)


def test_every_new_name_is_a_field_of_the_schema() -> None:
    fields = str(Recipe.model_json_schema())
    for renamed in RENAMED_KEYS.values():
        for old, new in renamed.items():
            assert f"'{new}'" in fields and old != new
