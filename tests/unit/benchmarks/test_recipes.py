"""`make recipes` and the comparison of XS-CoT's variants: a run is completed once, read back from its log, and rejected
under other settings; every bundled phrase keeps its answer byte for byte at every stage of the compression."""

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from builders import tiny_qwen2_audio, tone
from child_process import python_path
from earwise.audio import decode, encode_ogg
from earwise.config.recipe import load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.data import manifest
from earwise.datasets.xs_cot import instructions
from earwise.engine.base import Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError
from earwise.evaluation.metrics import stats
from earwise.files import read_log
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.prompts import prompt_turns, target_text, xs_cot_chain
from earwise.training.stages.compression_schedule import plan_schedule
from earwise.types import Audio, Example, Text, Turn

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import compress  # noqa: E402
import later_page  # noqa: E402
import recipe_rows  # noqa: E402
import recipes  # noqa: E402

STAGE = {
    "kind": "sft",
    "name": "learn",
    "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": {"plain": 1.0}},
    "clips_per_step": 2,
    "max_steps": 5,
    "pack_tokens": 400,
    "optimizer": {"learning_rate": 1e-2, "lr_scheduler_type": "constant"},
    "trainable": {"decoder": "full"},
}
EVAL = {"manifest": "rows.jsonl", "style": "plain", "max_new_tokens": 2}


def tiny(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """A tiny model, named `test_recipes:tiny` in the recipes below."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe with profile `cpu` and two rows; started processes can import this file."""
    monkeypatch.setenv("PYTHONPATH", python_path(Path(__file__).parent))
    monkeypatch.setattr(recipes, "RECIPES", tmp_path)
    rows = []
    for number, name in enumerate(("dog", "cat")):
        (tmp_path / f"{name}.ogg").write_bytes(encode_ogg(tone(0.5, 300 * (number + 1)), 16000))
        turn = Turn("user", (Audio(f"{name}.ogg"), Text("What is it?")))
        rows.append(Example(name, (turn,), (name,), ("dog", "cat"), root=tmp_path))
    manifest.write(tmp_path / "rows.jsonl", rows)
    raw = {
        "recipe": "t",
        "model": {"name": "test_recipes:tiny"},
        "stages": [STAGE],
        "eval": [EVAL],
        "on_overlap": "warn",
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(raw | {"profiles": {"cpu": {}}}))
    return tmp_path


def test_a_recipe_is_run_to_its_end_once_and_read_back(base: Path) -> None:
    out = base / "out"
    recipe = load_recipe(base / "t.yaml", profile="cpu")
    start_arguments = (str(base / "t.yaml"), "--profile", "cpu", "--out", str(out / "t"))
    assert recipes.run_to_end(out / "t", recipe, start_arguments) is None
    assert recipes.run_to_end(out / "t", recipe, start_arguments) is None, "it is finished, so nothing is started"
    assert [row["run"] for row in read_log(out / recipes.WALL)] == ["t"]

    row = recipes.summarize_recipe("t", out)
    losses = [logged["sft/loss"] for logged in read_log(out / "t" / "metrics.jsonl")]
    assert row["steps"] == 5 and row["stages"][0]["name"] == "learn"
    assert row["stages"][0]["loss"] == pytest.approx([losses[0], losses[-1]], abs=1e-4), "a quarter of five is one"
    assert losses[-1] < losses[0]
    held_out = row["held_out"][0]
    for when in ("before", "after"):
        right = round(2 * held_out[when]["accuracy"])
        assert [held_out[when]["low"], held_out[when]["high"]] == pytest.approx(stats.wilson(right, 2))
        assert held_out[when]["blind"] is not None
    assert held_out["n"] == 2 and held_out["chance"] == 0.5
    assert held_out["trained_on"], "the same manifest, nothing held out"

    assert "| `t` | 5 | 2 |" in later_page.table(later_page.HEAD, [later_page.line(row)])
    recipes.write(out, [row], {"other": "no such file"})
    summary = json.loads((out / "summary.json").read_text())
    assert summary["recipes"][0]["recipe"] == "t" and summary["failed"] == {"other": "no such file"}
    assert summary["minutes"] == round(row["wall_seconds"] / 60, 1)
    text = (out / "summary.md").read_text()
    assert f"learn 5, {row['stages'][0]['seconds'] / 60:.1f}: loss" in text and "other failed: no such file" in text
    assert 'href="t/report.html"' in (out / "summary.html").read_text() and (out / "t" / "report.html").exists()

    with pytest.raises(ConfigError, match="other settings"):
        recipes.run_to_end(
            out / "t", load_recipe(base / "t.yaml", profile="cpu", overrides=["seed=9"]), start_arguments
        )


def test_a_failing_recipe_is_reported_and_the_others_continue(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "rows.jsonl").unlink()
    monkeypatch.setattr(recipes, "NAMES", ("missing", "t"))
    monkeypatch.setattr(sys, "argv", ["recipes.py", "--out", str(base / "out"), "--quick"])
    assert recipes.main() == 2
    output = capsys.readouterr()
    assert "missing.yaml: no such file" in output.out
    assert "rows.jsonl" in output.out and "t: failed" in output.out


def test_rows_of_a_recipe_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    join = ("build", "join", "starter:val=3", "--no-check", "--out", "rows.jsonl")
    monkeypatch.setattr(
        recipe_rows, "BUILDS", {"a": ("rows.jsonl", (join,)), "b": ("x", (("build", "join", "no.jsonl"),))}
    )
    assert recipe_rows.build_rows("a") is None and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3
    (tmp_path / "rows.jsonl").write_text("kept")
    assert recipe_rows.build_rows("a") is None and (tmp_path / "rows.jsonl").read_text() == "kept"
    assert recipe_rows.build_rows("b"), "the command's own words"
    assert recipe_rows.build_rows("r1-aqa") is None, "needs nothing"


def test_the_page_of_later_recipes_agrees_with_the_measured_file() -> None:
    page = later_page.PAGE.read_text(encoding="utf-8")
    assert len(later_page.BLOCK.findall(page)) == 1
    assert later_page.rendered(page) == page, "run python benchmarks/later_page.py"


def test_beginning_and_end_are_means_of_quarters() -> None:
    assert recipes.ends([7.0]) == [7.0, 7.0]
    assert recipes.ends([8.0, 4.0, 0.0, 0.0, 0.0, 0.0, 1.0, 3.0]) == [6.0, 2.0]


def test_rows_of_a_stage_are_not_held_out() -> None:
    folder = PACKAGED_RECIPES
    recipe_of = {name: load_recipe(folder / f"{name}.yaml", profile="cpu") for name in ("embedded", "xs-cot", "mellow")}
    assert {name: recipes.is_trained_on(recipe.eval[0], recipe) for name, recipe in recipe_of.items()} == {
        "embedded": False,  # one manifest, two splits
        "xs-cot": False,
        "mellow": False,
    }


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_has_the_cpu_profile(name: str) -> None:
    assert load_recipe(PACKAGED_RECIPES / f"{name}.yaml", profile="cpu", overrides=recipes.QUICK).eval


def bundled_rows() -> list[Example]:
    """The rows that `build xs-cot` makes of every bundled phrase, in every language except English."""
    rows = []
    for item in instructions.read_phrases(instructions.BUNDLED, pytest.fail):
        core = item.pairs["en"]
        for code, pair in item.pairs.items():
            if code != "en":
                chain = xs_cot_chain(code, pair.instruction, core.instruction, core.response)
                turn = Turn("user", (Audio("said.ogg"),))
                rows.append(Example(f"{item.id}-{code}", (turn,), (pair.response,), reasoning=chain, language=code))
    return rows


@pytest.mark.parametrize("arm", ["implicit", "fully-implicit", "k1", "tokens"])
def test_every_bundled_answer_is_byte_identical_at_every_stage(arm: str) -> None:
    model, rows = tiny(), bundled_rows()
    stage = load_recipe(compress.RECIPE, profile="cpu-delay", arm=arm).stages[-1]
    schedule = plan_schedule(stage.model_copy(update={"smoothing": None}), rows, 60, seed=1)
    steps = range(0, int(stage.steps_per_unit * (schedule.cutover + 1)), stage.steps_per_unit)
    assert [schedule.removed_units(step) for step in steps] == list(range(int(schedule.cutover) + 1))
    assert len(rows) == 90
    for row in rows:
        shortened = [schedule.reply(row, "xs-cot", step, model) for step in steps]
        replies = [model.tokenizer.decode(reply.ids) for reply in shortened]
        assert replies[0] == target_text(row, "xs-cot")
        assert all(text.endswith(f"[{row.language}-response] {row.answer[0]}") for text in replies), row.id
        sizes = [len(reply.ids) for reply in shortened]
        assert all(later <= earlier for earlier, later in itertools.pairwise(sizes)) and sizes[-1] < sizes[0], row.id


def test_the_loss_on_answers_equals_the_engines_score_and_leaves_out_the_chain(base: Path) -> None:
    row = replace(bundled_rows()[0], turns=(Turn("user", (Audio("dog.ogg"),)),), root=base)
    model = tiny()
    recipe = load_recipe(compress.RECIPE, profile="cpu-delay", arm="direct")
    assert compress.reply_before_answer(row, recipe, model) == ""
    without_chain = compress.answer_loss(model, recipe, [row])
    waveform = decode(base / "dog.ogg", model.spec.sample_rate)
    score = LocalEngine(model).score([Prompt(prompt_turns(row, "spoken"), (waveform,), "a")], [row.answer])[0][0]
    assert without_chain["tokens"] == len(model.tokenizer.encode(row.answer[0])) + 1
    assert without_chain["nats_a_token"] == pytest.approx(-score / without_chain["tokens"], abs=1e-3)

    chain = load_recipe(compress.RECIPE, profile="cpu-delay", arm="chain")
    whole = compress.reply_before_answer(row, chain, model)
    assert whole + row.answer[0] == target_text(row, "xs-cot")
    after_chain = compress.answer_loss(model, chain, [row])
    texts = [whole + row.answer[0]]
    whole_reply = LocalEngine(model).score([Prompt(prompt_turns(row, "xs-cot"), (waveform,), "a")], [texts])[0]
    assert after_chain["tokens"] == without_chain["tokens"], "the chain is not counted"
    assert after_chain["nats_a_token"] * after_chain["tokens"] < -whole_reply[0], "but it precedes the answer"
    assert math.isfinite(after_chain["nats_a_token"])
    short = compress.reply_before_answer(row, load_recipe(compress.RECIPE, profile="cpu-delay", arm="implicit"), model)
    no_chain = compress.reply_before_answer(
        row, load_recipe(compress.RECIPE, profile="cpu-delay", arm="fully-implicit"), model
    )
    assert len(whole) > len(short) > len(no_chain)
    assert all(text.endswith(f"[{row.language}-response] ") for text in (whole, short, no_chain))
