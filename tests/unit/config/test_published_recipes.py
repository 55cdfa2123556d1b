"""Recipes hold the values that their papers publish: Mellow's budget, shares and parts, Ke-Omni-R's halves."""

from collections import Counter
from pathlib import Path

import pytest

from earwise.config.recipe import Recipe, load_recipe
from earwise.config.stages import GrpoConfig, SftConfig
from earwise.data import manifest
from earwise.data.index import open_rows
from earwise.datasets.reasonaqa.counts import PUBLISHED
from earwise.types import Audio, Example, Text, Turn

TASKS = {
    "caption": "caption", "ClothoAQA": "yes_no", "CLE": "entailment", "CLD": "difference", "ACD": "difference",
    "MCQ": "multiple_choice", "Detail": "detail",
}  # fmt: skip
"""End of a part's name in the paper's table -> task of its rows."""
BUILT_SOURCES = {"ClothoAQA": "ClothoAQA", "CLE": "CLE", "CLD": "CLD", "ACD": "ACD"}
"""Part -> source of its rows where the set is built from files of its own; others: the data set of the clips."""


def reasonaqa_rows(folder: Path, *, built: bool) -> Path:
    """A hundredth of ReasonAQA's training rows, named as the published file is read or as they are built."""
    rows = []
    for part, (count, _, _) in PUBLISHED.items():
        task = next((task for end, task in TASKS.items() if part.endswith(end)), "")
        family = "AudioCaps" if part.startswith(("AudioCaps", "AC")) else "Clotho"
        source = BUILT_SOURCES.get(part, family) if built else f"ReasonAQA ({family})"
        for number in range(count // 100):
            turns = (Turn("user", (Audio("a.wav"), Text(f"{part} {number}?"))),)
            fields = {"task": task, "source": source, "meta": {"subset": part}}
            rows.append(Example(f"{part}-{number}", turns, ("x",), root=folder, split="train", **fields))
    path = folder / f"{built}.jsonl"
    manifest.write(path, rows)
    return path


def chosen_parts(path: Path, arm: str) -> Counter[str]:
    """Number of rows by part of the table that an arm of `mellow` trains on."""
    counts: Counter[str] = Counter()
    for source in load_recipe("mellow", profile="paper", arm=arm).stages[0].data.mixture:
        assert source.weight == 1.0
        counts.update(row.meta["subset"] for row in open_rows(path, check_files=False).select(source.where))
    return counts


@pytest.mark.parametrize("built", [False, True], ids=["published", "built"])
def test_arms_of_mellow_choose_the_published_parts(built: bool, tmp_path: Path) -> None:
    path = reasonaqa_rows(tmp_path, built=built)
    counts = {part: count // 100 for part, (count, _, _) in PUBLISHED.items() if count}
    clotho = {part for part in counts if part.startswith(("Clotho", "CL"))}
    assert chosen_parts(path, "clotho") == {part: counts[part] for part in clotho}
    assert chosen_parts(path, "audiocaps") == {part: counts[part] for part in counts.keys() - clotho}
    synthetic = {part for part in counts if part.endswith(("MCQ", "Detail"))}
    assert chosen_parts(path, "synthetic") == {part: counts[part] for part in synthetic}
    rest = chosen_parts(path, "no-synthetic")
    assert rest == {part: counts[part] for part in counts.keys() - synthetic}
    total = sum(rest.values())
    shares = Counter[str]()
    for part, count in rest.items():
        shares[next(task for end, task in TASKS.items() if part.endswith(end))] += count / total
    expected = {"caption": 0.228, "entailment": 0.039, "difference": 0.685, "yes_no": 0.047}
    assert shares == pytest.approx(expected, abs=1e-3), "rows are drawn alike, so these are the published shares"


def test_mellow_has_the_published_budget_and_wording() -> None:
    for profile in ("paper", None):
        stage = load_recipe("mellow", profile=profile).stages[0]
        assert isinstance(stage, SftConfig)
        assert (stage.rows_per_step, stage.num_train_epochs, stage.data.styles) == (256, 10, {"mellow": 1.0})
        assert not stage.data.weight_by_size and [source.where for source in stage.data.mixture] == [{}]
    assert sum(count for count, _, _ in PUBLISHED.values()) == 968_071


def test_ke_omni_r_has_both_halves_and_one_prompt_a_device() -> None:
    recipe = load_recipe("ke-omni-r", profile="paper")
    (stage,) = recipe.stages
    assert isinstance(stage, GrpoConfig) and recipe.hardware is not None
    assert stage.prompts_per_step == recipe.hardware.gpus
    assert 2 * 10_000 / stage.prompts_per_step < 6_400 and stage.num_train_epochs == 2


@pytest.mark.parametrize("name", ["qwen2-audio", "mellow"])
def test_training_starts_from_the_papers_start_and_not_from_the_familys_default(name: str) -> None:
    assert load_recipe(name, profile="paper").model.weights == f"{name}-start"
    assert load_recipe(name, profile="cpu").model.weights is None


def test_released_values_of_r1aqa() -> None:
    recipe: Recipe = load_recipe("r1-aqa", profile="paper")
    (stage,) = recipe.stages
    assert isinstance(stage, GrpoConfig)
    assert (stage.top_k, stage.data.channel, stage.max_steps, stage.optimizer.lr_scheduler_steps) == (
        50,
        "first",
        500,
        1000,
    )
    assert (recipe.seed, stage.group_size, stage.beta, stage.max_new_tokens, stage.temperature) == (
        42,
        8,
        0.04,
        256,
        1.0,
    )
