"""Recipes measure benchmarks (`eval: [{task: mmau, path: ...}]`) in the task's own wording; ablations by domain."""

from pathlib import Path
from typing import Any

import pytest

import benchmark_files
from earwise.apps.ablation_comparison import compare_arms
from earwise.apps.recipe_eval import eval_rows, evaluate_entry
from earwise.config.control.run_control import EvalConfig
from earwise.config.recipe import check_recipe
from earwise.errors import ConfigError, DataError
from earwise.evaluation.results import read_run
from earwise.report.ablation import as_markdown
from scripted_engine import ScriptedEngine

RECIPE: dict[str, Any] = {
    "recipe": "small",
    "model": {"name": "embedded"},
    "stages": [{"kind": "sft", "max_steps": 1, "data": {"mixture": [{"manifest": "starter:train"}]}}],
}


def entry(**settings: Any) -> EvalConfig:
    return check_recipe({**RECIPE, "eval": [settings]}, "small.yaml").eval[0]


def test_a_benchmark_is_named_by_task_and_path() -> None:
    config = entry(task="mmau", path="mmau-test-mini.json")
    assert (config.manifest, config.style, config.max_new_tokens) == ("mmau-test-mini.json", "", 0)
    own = entry(task="mmau", path="mmau-test-mini.json", style="think", max_new_tokens=64)
    assert (own.style, own.max_new_tokens) == ("think", 64)
    plain = entry(manifest="starter:val")
    assert (plain.task, plain.style, plain.max_new_tokens) == ("manifest", "answer", 32), "as it was"
    assert (
        check_recipe(check_recipe({**RECIPE, "eval": [config.model_dump()]}, "x").model_dump(), "x").eval[0] == config
    )
    with pytest.raises(ConfigError, match="path and manifest are two names of one key"):
        entry(task="mmau", path="a.json", manifest="b.json")


def test_an_entry_is_asked_in_the_wording_of_its_task(tmp_path: Path) -> None:
    benchmark_files.mmsu(tmp_path / "sets")
    engine = ScriptedEngine(lambda prompt: "B")
    config = entry(task="mmsu", path="sets/mmsu.jsonl")
    metrics = evaluate_entry(config, tmp_path, engine, tmp_path / "run", blind=())
    assert metrics["n"] == 2 and metrics["task"]["name"] == "mmsu"
    row = read_run(tmp_path / "run").rows[0]
    assert row["prompt"].startswith("Choose the most suitable answer") and row["style"] == "mmsu"
    assert row["decoding"]["max_new_tokens"] == 64


def test_clips_elsewhere_and_missing_ones(tmp_path: Path) -> None:
    path = benchmark_files.mmau(tmp_path / "sets")
    (tmp_path / "sets" / "test-mini-audios").rename(tmp_path / "audio")
    assert len(eval_rows(entry(task="mmau", path=f"sets/{path.name}", audio_root="audio"), tmp_path)) == 3
    with pytest.raises(DataError, match="none of its 3 clips is there"):
        eval_rows(entry(task="mmau", path=f"sets/{path.name}"), tmp_path)
    next((tmp_path / "audio").iterdir()).unlink()
    with pytest.raises(DataError, match=r"1 clips are missing, the first is .*m\d\.wav; set audio_root"):
        eval_rows(entry(task="mmau", path=f"sets/{path.name}", audio_root="audio"), tmp_path)


def test_an_ablation_prints_a_table_by_domain(tmp_path: Path) -> None:
    """R1-AQA's and SARI's tables: one line an arm, one column a domain."""
    benchmark_files.mmar(tmp_path)
    config, arms = entry(task="mmar", path="mmar.jsonl"), {}
    text = (tmp_path / "mmar.jsonl").read_text(encoding="utf-8").replace('"speech"', '"sound"', 1)
    (tmp_path / "mmar.jsonl").write_text(text, encoding="utf-8")
    for arm, answer in (("base", "A man"), ("grpo", "A child")):
        engine = ScriptedEngine(lambda prompt, answer=answer: f"<answer>{answer}</answer>")
        evaluate_entry(config, tmp_path, engine, tmp_path / arm, blind=())
        arms[arm] = {0: read_run(tmp_path / arm)}
    comparison = {"manifest": "mmar.jsonl", **compare_arms(arms)}
    assert comparison["arms"][1]["by"]["task"] == {"sound": 1.0, "speech": 1.0}
    printed = as_markdown({"title": "small", "evals": [comparison], "runs": []})
    assert "| arm | sound | speech | all |" in printed and "| grpo | 100.0 | 100.0 | 100.0 |" in printed
    assert "| base | 0.0 | 0.0 | 0.0 |" in printed
