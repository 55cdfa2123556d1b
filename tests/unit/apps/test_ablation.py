"""Arms with known scores give known tables; finished runs are kept, a failure costs one run, and a folder of another
recipe is refused."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from earwise import cli
from earwise.apps import ablation
from earwise.apps.ablation_comparison import arm_accuracy, compare_arms, holm
from earwise.config.recipe import load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.errors import ConfigError, DataError
from earwise.evaluation.metrics import stats
from earwise.evaluation.results import METRICS, SAMPLES, SETTINGS, EvalRun, read_run
from earwise.files import append_jsonl, write_json, write_jsonl
from earwise.report.ablation import as_markdown, conclusion

RECIPE = {
    "recipe": "small",
    "model": {"name": "embedded"},
    "seed": 7,
    "stages": [
        {"kind": "sft", "name": "one", "data": {"mixture": [{"manifest": "starter:train"}]}, "max_steps": 4},
        {"kind": "sft", "name": "two", "data": {"mixture": [{"manifest": "starter:train"}]}, "max_steps": 2},
    ],
    "eval": [{"manifest": "starter:val", "limit": 4}],
    "arms": {"base": {}, "short": {"stages.two": None}, "deaf": {"eval": []}},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False), encoding="utf-8")
    return path


def write_evaluation(folder: Path, right: Sequence[bool], *, blind: float | None = 0.25, first: int = 0) -> Path:
    """Write the folder of an evaluation by hand, one row per item."""
    rows = [
        {"id": f"item-{number:03}", "permutation": 0, "status": "ok", "reasoning_tokens": 3,
         "scores": dict.fromkeys(("official", "strict", "lenient"), float(ok))}
        for number, ok in enumerate(right, first)
    ]  # fmt: skip
    write_jsonl(folder / SAMPLES, rows)
    write_json(folder / SETTINGS, {})
    kinds = {kind: {"accuracy": blind} for kind in ("official", "strict", "lenient")}
    metrics = {"headline": "official", "chance": 0.25, "format": {"accuracy": 1.0}, "n": len(rows)}
    write_json(folder / METRICS, metrics | {"blind": {"silence": {"accuracy": kinds}} if blind is not None else {}})
    return folder


def arm(tmp_path: Path, name: str, *runs: Sequence[bool]) -> dict[int, EvalRun]:
    return {seed: read_run(write_evaluation(tmp_path / f"{name}-{seed}", right)) for seed, right in enumerate(runs)}


def hits(n: int, *numbers: int) -> list[bool]:
    return [number in numbers for number in range(n)]


# The table -----------------------------------------------------------------------------------------------------------


def test_means_and_differences_over_items_and_seeds_by_hand(tmp_path: Path) -> None:
    table = compare_arms(
        {
            "base": arm(tmp_path, "base", hits(4, 0), hits(4, 0, 1)),
            "other": arm(tmp_path, "other", hits(4, 0, 1, 2), hits(4, 1, 2)),
        }
    )
    base, better = table["arms"]
    assert (table["n"], table["kind"], table["first"], table["chance"]) == (4, "official", "base", 0.25)
    assert (base["accuracy"], base["by_seed"], base["against"]) == (0.375, {"0": 0.25, "1": 0.5}, None)
    assert (better["accuracy"], better["blind"], better["format"], better["delay"]) == (0.625, 0.25, 1.0, 3.0)
    gap = better["against"]
    # item 0 is lost by 0.5, item 1 won by 0.5, item 2 won by 1, item 3 is equal
    assert (gap["difference"], gap["wins"], gap["losses"], gap["seeds"], gap["method"]) == (0.25, 2, 1, 2, "exact")
    assert gap["p"] == gap["p_holm"] == 1 and gap["low"] < 0 < gap["high"]
    assert "no arm can be told apart from base" in conclusion(table)


def test_an_arm_that_is_better_on_many_items_with_every_seed_is_recognised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    easy = rng.random((3, 120)) < 0.4
    better = easy | (rng.random((3, 120)) < 0.5)
    same = rng.random((3, 120)) < 0.4
    table = compare_arms(
        {"base": arm(tmp_path, "base", *easy), "same": arm(tmp_path, "same", *same), "up": arm(tmp_path, "up", *better)}
    )
    _, level, up = table["arms"]
    assert up["against"]["difference"] == pytest.approx(better.mean() - easy.mean())
    assert 0 < up["against"]["low"] < up["against"]["difference"] < up["against"]["high"]
    assert up["against"]["p_holm"] < 0.01 < level["against"]["p_holm"]
    assert conclusion(table).startswith("Different from base on 120 items: up by +") and "1 more cannot" in conclusion(
        table
    )


def test_silence_is_the_mean_of_the_runs_that_were_evaluated_under_it(tmp_path: Path) -> None:
    def members(name: str, *blind: float | None) -> dict[int, EvalRun]:
        folders = [
            write_evaluation(tmp_path / f"{name}{seed}", hits(4, 0), blind=score) for seed, score in enumerate(blind)
        ]
        return {seed: read_run(folder) for seed, folder in enumerate(folders)}

    table = compare_arms({"base": members("base", 0.5, None, 0.25), "other": members("other", None, None)})
    assert [row["blind"] for row in table["arms"]] == [0.375, None]


def test_the_interval_is_wider_where_seeds_disagree() -> None:
    rng = np.random.default_rng(1)
    item = rng.random(200)
    alike = np.stack([item < 0.5] * 3).astype(float)
    apart = np.stack([item < bar for bar in (0.2, 0.5, 0.8)]).astype(float)
    narrow, wide = (arm_accuracy(flags, seed=0) for flags in (alike, apart))
    assert narrow["accuracy"] == pytest.approx(0.5, abs=0.08)
    # equal seeds add nothing: the interval is that of 200 items, 1.96 sqrt(0.25 / 200) on either side
    assert narrow["high"] - narrow["low"] == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.1)
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_one_seed_is_the_paired_difference_of_two_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.random(60) < bar for bar in (0.4, 0.6))
    table = compare_arms({"a": arm(tmp_path, "a", a), "b": arm(tmp_path, "b", b)})
    expected = stats.paired_difference(list(b), list(a), seed=0)
    gap = table["arms"][1]["against"]
    assert all(gap[name] == expected[name] for name in ("low", "high", "p", "wins", "losses", "method"))
    assert gap["difference"] == pytest.approx(expected["difference"])
    low, high = stats.wilson(int(b.sum()), 60)
    assert (table["arms"][1]["low"], table["arms"][1]["high"]) == (low, high)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_runs_on_other_items_are_refused(tmp_path: Path) -> None:
    base = arm(tmp_path, "base", hits(4, 0))
    with pytest.raises(DataError, match="is on other items than the first run"):
        compare_arms({"base": base, "far": {0: read_run(write_evaluation(tmp_path / "far", hits(4, 0), first=1))}})
    with pytest.raises(DataError, match="no run of the ablation is finished"):
        compare_arms({"base": {}, "far": {}})


def test_seeds_that_only_one_arm_has_are_in_its_mean_but_not_in_the_test(tmp_path: Path) -> None:
    base = arm(tmp_path, "base", hits(4, 0), hits(4, 0))
    second_arm = {1: arm(tmp_path, "other", hits(4), hits(4, 0, 1))[1]}
    table = compare_arms({"base": base, "gone": {}, "other": second_arm})
    assert [row["arm"] for row in table["arms"]] == ["base", "other"]
    assert table["arms"][1]["seeds"] == [1] and table["arms"][1]["against"]["seeds"] == 1


# Runs ----------------------------------------------------------------------------------------------------------------


def test_jobs_are_arms_within_seeds_and_each_is_its_recipe(recipe: Path, tmp_path: Path) -> None:
    jobs = ablation.plan_jobs(recipe, ["base", "short"], 2, tmp_path / "out", overrides=["stages.0.max_steps=3"])
    assert [job.folder.name for job in jobs] == ["base-seed7", "short-seed7", "base-seed8", "short-seed8"]
    assert [len(job.recipe.stages) for job in jobs] == [2, 1, 2, 1]
    assert [job.recipe.seed for job in jobs] == [7, 7, 8, 8] and jobs[0].recipe.stages[0].max_steps == 3
    assert jobs[3].command[:2] == ("train", str(recipe)) and jobs[3].command[-1] == "seed=8"
    again = load_recipe(recipe, arm="short", overrides=["stages.0.max_steps=3", "seed=8"])
    assert jobs[3].recipe == again


def test_arms_that_cannot_be_compared_are_refused_before_anything_runs(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arm 'bse' is none of base, short, deaf"):
        ablation.plan_jobs(recipe, ["bse"], 1, tmp_path / "out")
    with pytest.raises(ConfigError, match="name each arm once"):
        ablation.plan_jobs(recipe, ["base", "base"], 1, tmp_path / "out")
    with pytest.raises(ConfigError, match="arm 'deaf' has 0 entries under eval"):
        ablation.plan_jobs(recipe, ["base", "deaf"], 1, tmp_path / "out")
    job = ablation.plan_jobs(recipe, ["base"], 1, tmp_path / "out")[0]
    write_json(job.folder / "recipe.json", {"recipe": job.recipe.model_dump(mode="json")})
    ablation.plan_jobs(recipe, ["base"], 1, tmp_path / "out")
    with pytest.raises(ConfigError, match="base-seed7: holds a run of another recipe"):
        ablation.plan_jobs(recipe, ["base"], 1, tmp_path / "out", overrides=["stages.0.max_steps=3"])


def complete_job(job: ablation.AblationJob, right: Sequence[bool], *, blind: float | None = 0.25) -> None:
    (job.folder / "final").mkdir(parents=True)
    for step in range(1, 5):
        append_jsonl(
            job.folder / "metrics.jsonl", {"step": step, "stage": "stage-0-one", "seconds": 1.5, "sft/loss": 1}
        )
    write_evaluation(job.eval_folder(0), right, blind=blind)


def test_finished_runs_are_kept_a_failed_one_is_reported_and_the_others_are_compared(
    recipe: Path, tmp_path: Path
) -> None:
    jobs = ablation.plan_jobs(recipe, ["base", "short"], 2, tmp_path / "out", overrides=["model.name=no-such-model"])
    for job in jobs[:3]:
        complete_job(job, hits(4, 0) if job.arm == "base" else hits(4, 0, 1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    lines: list[str] = []
    failed = ablation.run_jobs(jobs, lines.append)  # only the last one is trained, by the real program, and cannot be
    assert list(failed) == [jobs[3].folder] and "no-such-model" in failed[jobs[3].folder]
    assert [line for line in lines if line.startswith("[")] == [
        "[1/4] base, seed 7", "[2/4] short, seed 7", "[3/4] base, seed 8", "[4/4] short, seed 8",
    ]  # fmt: skip
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items() if path.is_file())
    table = ablation.write_results(tmp_path / "out", jobs, failed, "small & short")
    row = table["evals"][0]["arms"][1]
    assert row["seeds"] == [7] and row["against"]["difference"] == 0.25
    assert [run["failed"] is None for run in table["runs"]] == [True, True, True, False]
    assert table["runs"][0]["train_seconds"] == 6.0 and table["runs"][0]["steps_asked"] == 6
    assert json.loads((tmp_path / "out" / "ablation.json").read_text(encoding="utf-8")) == table
    text = (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8")
    assert text == as_markdown(table)
    assert "| short | 1 | 50.0 |" in text and "short-seed8 failed" in text and "base-seed7, base-seed8" in text
    page = (tmp_path / "out" / "ablation.html").read_text(encoding="utf-8")
    assert "small &amp; short" in page and "4 of 6" in page and page.count('class="irow"') == 3
    assert "<svg" in page and "no-such-model" in page


def test_only_the_first_seed_must_have_been_measured_under_silence(recipe: Path, tmp_path: Path) -> None:
    jobs = ablation.plan_jobs(recipe, ["base", "short"], 2, tmp_path / "out")
    for job in jobs:
        complete_job(job, hits(4, 0), blind=None if job.folder.name in ("short-seed7", "base-seed8") else 0.25)
    lines: list[str] = []
    # the model of short-seed7 is asked again, and its folder holds none; that of base-seed8 is not asked
    assert list(ablation.run_jobs(jobs, lines.append)) == [jobs[1].folder]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_run_once_and_ends_the_ablation(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    """A stand-in for the interpreter prints a line, waits, and ends as `earwise train` does when it is interrupted."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\ntrap 'echo saved >> \"$0.log\"; exit 130' TERM\necho started >&2\nwhile :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def interrupt(line: str) -> None:
        if "started" in line:
            os.kill(os.getpid(), sent)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            ablation.run_jobs(ablation.plan_jobs(recipe, ["base"], 3, tmp_path / "out"), interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "program.log").read_text() == "saved\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_command_refuses_unknown_arms(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ablate", str(recipe), "--arms", "base,shrt", "--out", str(tmp_path / "out")]) == 2
    assert "arm 'shrt' is none of base, short, deaf" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Arms of the recipes -------------------------------------------------------------------------------------------------

RECIPES = PACKAGED_RECIPES
FORMS = {"structured": ("structured", "structured"), "unstructured": ("think", "format_think"),
         "implicit": ("answer", "format_answer")}  # fmt: skip
ORDERS = {"sorted": "easy_to_hard", "shuffled": "shuffled", "banded": "banded", "online": "online"}


@pytest.mark.parametrize("profile", ["paper", "cpu", "cpu-compare"])
def test_the_arms_of_sari_are_every_combination_that_its_paper_and_ours_name(profile: str) -> None:
    for form, (style, reward) in FORMS.items():
        for order, curriculum_order in ORDERS.items():
            for start in ("sft", "rl"):
                recipe = load_recipe(RECIPES / "sari.yaml", profile=profile, arm=f"{start}-{form}-{order}")
                *warm_up, grpo = recipe.stages
                assert (
                    len(warm_up) == (start == "sft")
                    and grpo.kind == "grpo"
                    and grpo.curriculum.order == curriculum_order
                )
                assert set(grpo.rewards) == {"accuracy", reward} and recipe.eval[0].style == style
                assert all(set(stage.data.styles) == {style} for stage in recipe.stages)
                chains = "unstructured" if form == "unstructured" else "structured"
                assert all(stage.data.mixture[0].manifest.endswith(f"sari/sft-{chains}.jsonl") for stage in warm_up)
                folder = {"paper": "sari/", "cpu": "runs/data-demo/", "cpu-compare": "runs/sari/"}[profile]
                assert all(stage.data.mixture[0].manifest.startswith(folder) for stage in recipe.stages)
    sft = load_recipe(RECIPES / "sari.yaml", profile=profile, arm="supervised-implicit").stages[0]
    rl = load_recipe(RECIPES / "sari.yaml", profile=profile, arm="rl-implicit-shuffled").stages[0]
    assert sft.kind == "sft" and rl.kind == "grpo"
    assert (sft.data.mixture, sft.data.styles) == (rl.data.mixture, rl.data.styles)
    assert sft.clips_per_step * sft.questions_per_clip * sft.max_steps == rl.prompts_per_step * rl.max_steps


def test_sft_arms_of_r1_aqa_see_as_many_questions_as_grpo_and_a_profile_changes_an_arm() -> None:
    for profile in (None, "cpu"):
        grpo, full, lora = (
            load_recipe(RECIPES / "r1-aqa.yaml", profile=profile, arm=arm).stages[0]
            for arm in ("grpo", "sft-full", "sft-lora")
        )
        assert grpo.kind == "grpo" and full.kind == lora.kind == "sft"
        for sft in (full, lora):
            num_questions = sft.clips_per_step * sft.questions_per_clip * sft.max_steps
            assert num_questions == grpo.prompts_per_step * grpo.max_steps and sft.data.styles == {"plain": 1.0}
        assert (full.trainable.decoder, lora.trainable.decoder) == ("full", "lora")
    limits = [
        load_recipe(RECIPES / "r1-aqa.yaml", profile=profile, arm="grpo-think").eval[0] for profile in (None, "cpu")
    ]
    assert [entry.max_new_tokens for entry in limits] == [256, 96] and limits[1].style == "think"
