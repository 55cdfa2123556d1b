"""Every task on a file in its published format: gold answers score full, empty ones nothing, and n never shrinks."""

import importlib.util
from html import escape
from pathlib import Path

import pytest

from earwise.apps.task_audit import audit
from earwise.engine.base import Prompt
from earwise.evaluation.items import build_items
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.run import evaluate
from earwise.evaluation.task_table import TASKS, load_task
from earwise.evaluation.terminal import as_text
from earwise.report.evaluation import write_report
from scripted_engine import ScriptedEngine

SPEC = importlib.util.spec_from_file_location("benchmark_files", Path(__file__).parents[2] / "benchmark_files.py")
assert SPEC and SPEC.loader
benchmark_files = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark_files)

LETTER_TASKS = ("mmsu", "airbench-foundation", "muchomusic")
"""Their official programs read letters."""


@pytest.mark.parametrize("name", ["mmsu", "airbench-foundation"])
def test_a_model_that_answers_in_words_is_told_so(name: str, tmp_path: Path) -> None:
    """The official program reads letters: the gold text is worth nothing there, and the run says why."""
    task = load_task(name)
    examples = task.load(benchmark_files.FILES[name](tmp_path), None)

    def in_words(prompt: Prompt) -> str:
        shown = str(prompt.turns)
        matches = (item for item in examples if all(text in shown for text in (item.question, *item.choices)))
        return f"{next(matches).answer[0].lower()} ..."

    metrics = evaluate(ScriptedEngine(in_words), examples, tmp_path / "run", task=task)
    assert metrics["headline"] == "official" and metrics["accuracy"]["lenient"]["accuracy"] == 1
    official = metrics["accuracy"]["official"]["accuracy"]
    (remark,) = metrics["remarks"]
    assert "name the right option in another form" in remark and f"100.0, not {100 * official:.1f}" in remark
    assert remark in as_text(metrics)
    report = write_report(tmp_path / "report.html", [tmp_path / "run"]).read_text(encoding="utf-8")
    assert escape(remark) in report
    letters = ScriptedEngine(lambda prompt: "A")
    assert "remarks" not in evaluate(letters, examples, tmp_path / "letters", task=task)


def test_every_task_has_a_file_to_audit() -> None:
    assert benchmark_files.FILES.keys() == TASKS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_audit(name: str, tmp_path: Path) -> None:
    task = load_task(name)
    examples = task.load(benchmark_files.FILES[name](tmp_path), None)
    results = audit(task, examples)
    assert {result["n"] for result in results.values()} == {len(examples)}
    best, worst = (0.0, 1.0) if task.headline in task.lower_is_better else (1.0, 0.0)
    best_value = results["perfect"]["headline"]
    if name in LETTER_TASKS:
        assert results["perfect"]["metrics"]["lenient"]["accuracy"] == 1, "letters are read by the general reading too"
        guess = results["first option"]["metrics"]
        assert guess["official"] == guess["lenient"], "a guess is in the form that the task reads"
    if task.headline == "cider_d":  # more than 1 is possible, and how much depends on the references
        assert best_value > 1
    else:
        assert best_value == pytest.approx(best), results["perfect"]
    assert results["empty"]["headline"] == pytest.approx(worst), results["empty"]
    for value in results["wrong form"]["metrics"].values():
        assert "n" in value


@pytest.mark.parametrize("name", LETTER_TASKS)
def test_letters_are_those_that_the_prompt_shows(name: str, tmp_path: Path) -> None:
    """Under a shuffled order, the letter beside the gold answer in the prompt is the one that counts."""
    task = load_task(name)
    examples = task.load(benchmark_files.FILES[name](tmp_path), None)
    for item in build_items(examples, EvalOptions(seed=3), None, task):
        place = item.example.choices.index(item.example.answer[0])
        letter = "ABCD"[place]
        lines = item.prompt_text
        assert f"{letter}. {item.example.answer[0]}" in lines or f"({letter}) {item.example.answer[0]}" in lines
        assert task.score(item.example, letter).values["official"] == 1
        other = "ABCD"[(place + 1) % len(item.example.choices)]
        assert task.score(item.example, other).values["official"] == 0
