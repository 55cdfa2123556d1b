"""The first day with a GPU, at toy size on the CPU: it starts, every part ends well, and says where it ran."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_day  # noqa: E402
from baselines.recipe_rows import row, wanted_rows  # noqa: E402

from earwise.config.recipe_files import PACKAGED_RECIPES  # noqa: E402
from earwise.data import manifest  # noqa: E402
from earwise.data.example_rows import from_row  # noqa: E402


def test_the_parts_run_at_toy_size_and_are_not_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--toy", "--out", str(tmp_path), "--only", "plans", "--only", "r1-aqa", "--only", "recipes"]
    words += ["--recipe", "r1-aqa"]
    result = gpu_day.main(words)
    assert json.loads((tmp_path / "gpu-day.json").read_text()) == result
    assert {"cpu", "torch", "gpus"} <= set(result["machine"]) and len(result["commit"]) == 40 and result["toy"]
    parts = result["parts"]
    assert parts["r1-aqa"]["ok"] and parts["r1-aqa"]["full"]["hours_for_500_steps"] > 0, parts["r1-aqa"]
    recipe = parts["recipes"]["each"]["r1-aqa"]
    assert recipe["ok"] and recipe["profile"] == "one-gpu" and len(recipe["steps"]) == 1, recipe
    assert not any((tmp_path / "work").iterdir()), "checkpoints and rows are deleted"
    capsys.readouterr()
    assert gpu_day.main(words)["parts"] == parts
    assert capsys.readouterr().err.count("already") == 3


def test_the_plans_are_those_of_the_published_sizes(tmp_path: Path) -> None:
    """R1-AQA trains all 8.4 billion parameters of Qwen2-Audio on eight GPUs; every plan has a peak and fits."""
    words = ["--toy", "--out", str(tmp_path), "--only", "plans", "--recipe", "r1-aqa", "--recipe", "mellow"]
    plans = gpu_day.main(words)["parts"]["plans"]
    assert plans["ok"] and set(plans["each"]) == {
        "r1-aqa paper", "r1-aqa one-gpu", "r1-aqa 24gb", "mellow paper", "mellow one-gpu"
    }  # fmt: skip
    paper = plans["each"]["r1-aqa paper"]
    assert paper["machine"]["processes"] == 8
    [stage] = paper["stages"]
    assert stage["trained"]["all"] == pytest.approx(8.397e9, rel=1e-3)
    assert all(stage["fits"] for plan in plans["each"].values() for stage in plan["stages"])


@pytest.mark.slow
def test_every_recipe_takes_a_step_at_toy_size(tmp_path: Path) -> None:
    result = gpu_day.main(["--toy", "--out", str(tmp_path), "--only", "kernels", "--only", "recipes"])
    assert result["parts"]["kernels"]["ok"], result["parts"]["kernels"]
    each = result["parts"]["recipes"]["each"]
    assert set(each) == {path.stem for path in PACKAGED_RECIPES.glob("*.yaml")}
    assert not {name: values.get("output") for name, values in each.items() if not values["ok"]}


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "best_device", lambda: "cpu")
    with pytest.raises(SystemExit, match="2"):
        gpu_day.main([])
    assert "no CUDA device here; --toy" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.stem for path in PACKAGED_RECIPES.glob("*.yaml")))
def test_synthetic_rows_meet_every_condition_of_a_recipe(name: str) -> None:
    recipe, _ = gpu_day.load_profile(name)
    for name_of_manifest, where, _ in wanted_rows(recipe):
        example = from_row(row("a", Path("a.wav"), 3, where), location=name_of_manifest)
        assert manifest.select([example], where)
