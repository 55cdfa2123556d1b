"""An evaluation of some items is extended to more; nothing is asked twice, and nothing else may have changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from earwise.apps.recipe_eval import select_items
from earwise.engine.base import Prompt
from earwise.errors import ConfigError
from earwise.evaluation.run import EvalOptions, evaluate_with_controls
from earwise.evaluation.scores import headline
from earwise.files import read_log
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task


def test_a_larger_limit_asks_the_other_items_only(tmp_path: Path) -> None:
    examples, out = tone_task(tmp_path, 16), tmp_path / "run"
    counts: list[int] = []

    def answer(prompt: Prompt) -> str:
        counts[-1] += 1
        return answer_by_pitch(prompt)

    for limit, num_new in ((6, 6), (6, 0), (10, 4), (None, 6)):
        counts.append(0)
        chosen = select_items(examples, limit, out)
        metrics = evaluate_with_controls(ScriptedEngine(answer), chosen, out, blind=("silence",))
        assert metrics["n"] == len(chosen) == (limit or 16)
        assert counts[-1] == 2 * num_new, "with sound and under silence"
        rows = read_log(out / "samples.jsonl")
        assert len({row["id"] for row in rows}) == len(rows) == (limit or 16)
        assert len({row["settings"] for row in rows}) == 1
    fresh = evaluate_with_controls(ScriptedEngine(answer_by_pitch), examples, tmp_path / "fresh", blind=("silence",))
    assert headline(metrics) == headline(fresh)
    assert headline(metrics, control="silence") == headline(fresh, control="silence")


def test_what_has_changed_is_not_extended(tmp_path: Path) -> None:
    examples, out = tone_task(tmp_path, 8), tmp_path / "run"
    evaluate_with_controls(ScriptedEngine(answer_by_pitch), select_items(examples, 4, out), out, blind=())
    with pytest.raises(ConfigError, match=r"holds answers to 4 items, more than the limit of 3"):
        select_items(examples, 3, out)
    engine = ScriptedEngine(answer_by_pitch)
    with pytest.raises(ConfigError, match="seed: 0 there, 1 now"):
        evaluate_with_controls(engine, select_items(examples, 8, out), out, EvalOptions(seed=1), blind=())
    other_gold = [replace(example, answer=(example.choices[0],)) for example in examples]
    with pytest.raises(ConfigError, match="other items or another edition of them"):
        evaluate_with_controls(engine, select_items(other_gold, 8, out), out, blind=())
    with pytest.raises(ConfigError, match="other items or another edition of them"):
        evaluate_with_controls(engine, examples[:2], out, blind=())
    assert len(read_log(out / "samples.jsonl")) == 4


def test_a_kill_while_rows_are_renewed_does_no_harm(tmp_path: Path) -> None:
    """The samples are renewed before the settings: a process that is killed in between can be run again."""
    examples, out = tone_task(tmp_path, 8), tmp_path / "run"
    evaluate_with_controls(ScriptedEngine(answer_by_pitch), select_items(examples, 4, out), out, blind=())
    old_settings = (out / "settings.json").read_bytes()
    evaluate_with_controls(ScriptedEngine(answer_by_pitch), examples, out, blind=())
    (out / "settings.json").write_bytes(old_settings)
    metrics = evaluate_with_controls(ScriptedEngine(answer_by_pitch), examples, out, blind=())
    assert metrics["n"] == 8
