"""Two runs are paired by item: known differences are found, and runs on different items are refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from earwise.engine.base import Prompt
from earwise.errors import DataError
from earwise.evaluation.compare import MAX_NAME_CHARS, as_text, column_names, compare
from earwise.evaluation.run import EvalOptions, evaluate
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task


def engine_correct_on(part: slice, n: int) -> ScriptedEngine:
    """Answers a slice of the items correctly, the others with an empty text."""
    correct_keys = {f"item-{number:03}" for number in range(n)[part]}

    def answer(prompt: Prompt) -> str:
        return answer_by_pitch(prompt) if prompt.key in correct_keys else ""

    return ScriptedEngine(answer)


def test_wins_losses_and_the_paired_difference(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 20)
    evaluate(engine_correct_on(slice(0, 8), 20), task, tmp_path / "before")
    evaluate(engine_correct_on(slice(4, 18), 20), task, tmp_path / "after")
    result = compare(tmp_path / "before", tmp_path / "after")
    row = result["official"]
    assert (result["a"], result["b"], result["n"]) == ("before", "after", 20)
    assert (row["accuracy_a"], row["accuracy_b"], row["wins"], row["losses"]) == (0.4, 0.7, 10, 4)
    assert row["difference"] == pytest.approx(0.3) and row["low"] <= 0.3 <= row["high"] and 0 < row["p"] <= 1
    assert sum(member["official"]["n"] for member in result["by"]["task"].values()) == 20
    assert compare(tmp_path / "after", tmp_path / "before")["official"]["difference"] == pytest.approx(-0.3)
    text = as_text(result)
    assert "10/4" in text and "+30.0" in text and "by difficulty" in text


def test_a_run_against_itself_differs_by_nothing(tmp_path: Path) -> None:
    evaluate(engine_correct_on(slice(0, 3), 8), tone_task(tmp_path, 8), tmp_path / "run")
    row = compare(tmp_path / "run", tmp_path / "run")["official"]
    assert row["difference"] == row["wins"] == row["losses"] == 0 and row["p"] == 1
    assert row["low"] < -0.2 and row["high"] > 0.2, "eight equal answers leave room for a difference"


def test_groups_of_one_item_claim_nothing(tmp_path: Path) -> None:
    task = [replace(example, category=f"kind {number}") for number, example in enumerate(tone_task(tmp_path, 4))]
    evaluate(engine_correct_on(slice(0, 0), 4), task, tmp_path / "before")
    evaluate(engine_correct_on(slice(0, 4), 4), task, tmp_path / "after")
    result = compare(tmp_path / "before", tmp_path / "after")
    assert len(result["by"]["category"]) == 4
    for member in result["by"]["category"].values():
        row = member["official"]
        assert row["difference"] == 1 and row["p"] == 1 and row["low"] < 0 < row["high"] == 1
    row = result["official"]
    assert row["p"] == pytest.approx(2 / 16) and row["low"] < 0, (
        "four equal outcomes of four happen by chance in one case of eight"
    )
    assert "exact (marked *)" in as_text(result) and "]*" in as_text(result)


def test_other_items_are_refused_unless_common_is_said(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 8)
    evaluate(ScriptedEngine(answer_by_pitch), task[:6], tmp_path / "a")
    evaluate(ScriptedEngine(answer_by_pitch), task[2:], tmp_path / "b")
    with pytest.raises(DataError, match=r"2 only in the first, 2 only in the second, 4 the same\); say --common"):
        compare(tmp_path / "a", tmp_path / "b")
    result = compare(tmp_path / "a", tmp_path / "b", common=True)
    assert (result["n"], result["only_a"], result["only_b"]) == (4, 2, 2) and "left out: 2 items" in as_text(result)
    evaluate(ScriptedEngine(answer_by_pitch), task[:2], tmp_path / "c")
    with pytest.raises(DataError, match="share no item"):
        compare(tmp_path / "b", tmp_path / "c", common=True)


def test_one_id_with_another_clip_is_another_item(tmp_path: Path) -> None:
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path / "x", 4), tmp_path / "a")
    changed_task = tone_task(tmp_path / "y", 4)
    (tmp_path / "y" / "clips" / "0.wav").write_bytes((tmp_path / "y" / "clips" / "1.wav").read_bytes())
    evaluate(ScriptedEngine(answer_by_pitch), changed_task, tmp_path / "b")
    with pytest.raises(DataError, match="1 only in the first, 1 only in the second, 3 the same"):
        compare(tmp_path / "a", tmp_path / "b")


def test_options_in_another_order_are_the_same_item(tmp_path: Path) -> None:
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 8), tmp_path / "a", EvalOptions(seed=1))
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 8), tmp_path / "b", EvalOptions(seed=2))
    assert compare(tmp_path / "a", tmp_path / "b")["n"] == 8


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("before", "after"),
        ("qwen2-audio-before-training-on-everything", "qwen2-audio-after-training-on-everything"),
        ("run-of-monday-morning-with-seed-1", "run-of-monday-morning-with-seed-12"),
        ("a" * 60, "a" * 61),
        ("results-of-the-baseline-model", "results-of-the-baseline-model"),
    ],
    ids=["short", "middle", "end", "longer", "equal"],
)
def test_heads_of_columns_tell_the_runs_apart(first: str, second: str) -> None:
    heads = column_names(first, second)
    assert heads[0] != heads[1] and max(map(len, heads)) <= MAX_NAME_CHARS
    if max(len(first), len(second)) <= MAX_NAME_CHARS and first != second:
        assert heads == (first, second)


def test_the_table_shows_the_names_of_both_runs(tmp_path: Path) -> None:
    names = ("the-model-before-training", "the-model-after-training")
    for name in names:
        evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 4), tmp_path / name)
    header, line, *_ = as_text(compare(tmp_path / names[0], tmp_path / names[1])).splitlines()
    assert all(head in header for head in column_names(*names)) and "before" in header and "after" in header
    assert len(line) >= len(header) - len("wins/losses"), "columns are as wide as their heads"
