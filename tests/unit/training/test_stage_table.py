"""The table of stages is complete, and its classes describe themselves before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest
import soundfile

from builders import tone
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.stage_kinds import STAGE_CONFIGS
from earwise.data import index, manifest
from earwise.errors import ConfigError, DataError
from earwise.models import registry
from earwise.models.memory.stage_memory import RolloutSize
from earwise.training import check_recipe as checks
from earwise.training.stages.stage import Stage, StageClass
from earwise.training.stages.table import STAGES, stage_class
from earwise.types import Audio, Example, Text, Turn

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {},
    "grpo": {"prompts_per_step": 5, "group_size": 4, "max_new_tokens": 7},
    "dpo": {"negatives": "options"},
    "compress": {"data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"think": 1.0}}},
    "gkd": {"teacher_context": "answer", "clips_per_step": 3, "max_new_tokens": 9},
}


def recipe(kind: str, **settings: Any) -> Recipe:
    """A recipe of one stage."""
    common = {"kind": kind, "max_steps": 2, "data": {"mixture": [{"manifest": "rows.jsonl", "weight": 2.0}]}}
    stage = common | SETTINGS[kind] | settings
    return check_recipe({"recipe": "t", "trackers": [], "stages": [stage]}, "test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips with a question, options and a reasoning each."""
    rows = []
    for number, duration_s in enumerate((0.3, 0.5)):
        soundfile.write(tmp_path / f"{number}.wav", tone(duration_s), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        rows.append(Example(str(number), turns, ("low",), ("low", "high"), reasoning="It hums.", root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", rows)
    return tmp_path


def test_every_kind_of_the_schema_has_a_class() -> None:
    assert set(STAGES) == set(STAGE_CONFIGS) == set(SETTINGS)


@pytest.mark.parametrize("kind", STAGES)
def test_classes_have_all_methods_of_the_protocols(kind: str) -> None:
    implementation = stage_class(recipe(kind).stages[0])
    assert implementation.kind == kind and implementation.__doc__
    for protocol in (Stage, StageClass):
        methods = [name for name in vars(protocol) if not name.startswith("_")]
        assert methods and all(callable(getattr(implementation, name)) for name in methods)


def test_memory_of_the_stages() -> None:
    memory = {kind: stage_class(config).memory(config) for kind, config in all_configs().items()}
    assert [kind for kind, need in memory.items() if need.keeps_reference] == ["grpo", "dpo", "gkd"]
    assert [kind for kind, need in memory.items() if not need.decodes_in_batches] == ["sft"]
    rollouts = {kind: need.rollout for kind, need in memory.items() if need.rollout}
    assert rollouts == {"grpo": RolloutSize(5, 4, 7), "gkd": RolloutSize(12, 1, 9)}
    grpo = all_configs()["grpo"]
    assert stage_class(grpo).memory(grpo, processes=2).rollout == RolloutSize(3, 4, 7), "the larger share of 5 prompts"


def test_memory_of_a_teacher_is_that_of_its_weights() -> None:
    config = recipe("gkd", teacher={"name": "embedded"}, teacher_context="question").stages[0]
    need = stage_class(config).memory(config, processes=3)
    sizes = registry.default_sizes("embedded")
    assert sizes is not None and not need.keeps_reference and need.rollout == RolloutSize(4, 1, 9)
    assert 4 * sizes.parameters < need.teacher_bytes < 4 * sizes.parameters + 50e6


def all_configs() -> dict[str, Any]:
    """Settings of a stage of each kind."""
    return {kind: recipe(kind).stages[0] for kind in STAGES}


@pytest.mark.parametrize("kind", STAGES)
def test_rows_are_opened_once_and_handed_on(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def recording_open(path: Path, **options: Any) -> index.ManifestRows:
        opened.append(path)
        return index.open_rows(path, **options)

    monkeypatch.setattr(checks, "open_rows", recording_open)
    source = {"manifest": "rows.jsonl"}
    mixture = {"mixture": [source, source], "styles": {"think": 1.0}}
    checked = checks.check_training(recipe(kind, data=mixture), folder)
    assert opened == [folder / "rows.jsonl"]
    ((first, weight), _) = checked.stages[0].data.mixture
    assert [row.id for row in first] == ["0", "1"] and weight == 1.0
    assert checked.row_counts == [{"rows.jsonl": 2}]


@pytest.mark.parametrize(
    ("kind", "settings", "error", "message"),
    [
        ("grpo", {"rewards": {"acuracy": 1.0}}, ConfigError, "acuracy"),
        ("sft", {"data": {"mixture": [{"manifest": "none.jsonl"}]}}, DataError, "is not there; build it"),
        ("dpo", {"negatives": "rows"}, DataError, "none of 2 rows has `rejected`"),
        ("sft", {"curriculum": {"order": "easy_to_hard"}}, DataError, "has no pass_count"),
    ],
)
def test_what_would_stop_the_run_later_is_refused(
    kind: str, settings: dict[str, Any], error: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(error, match=message):
        checks.check_training(recipe(kind, **settings), folder)
