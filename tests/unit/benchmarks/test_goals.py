"""Goals, distance to the limit, and the page of figures: by hand, and the scripts at their smallest."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import goals
import limit
import performance_page
from baselines import precision
from baselines.timing import commit

from earwise.training.limits.operators import PhaseOperators, Product, Total

PRODUCT, OTHER = Product(8, 4, 4, 1, "float32"), Product(2, 4, 4, 1, "float32")


def test_a_whole_step_is_compared_without_hearing_again() -> None:
    rounds = {
        "trl": {"rollout": [10.0, 8.0], "listen": [0.0, 0.0], "reference": [4.0, 4.0], "loss": [6.0, 4.0]},
        "earwise": {"rollout": [1.0, 2.0], "listen": [5.0, 5.0], "reference": [0.5, 1.0], "loss": [0.5, 1.0]},
    }
    assert goals.step_speedups(rounds, "long") == {"long trl": [10.0, 4.0]}


def test_a_goal_says_whether_it_is_reached_on_this_kind_of_machine() -> None:
    faster, smaller = goals.GOALS["greedy"], goals.GOALS["memory"]
    assert [faster.line(4.0, [4.0], amx)["reached"] for amx in (True, False)] == [False, True]
    assert [smaller.line(value, [value], False)["reached"] for value in (800.0, 950.0)] == [True, False]
    assert goals.GOALS["thoughts trl"].line(5.0, [5.0], False) == {
        "what": "GRPO step with completions of 60 tokens, times faster than TRL", "measured": 5.0, "rounds": [5.0],
        "goal": None, "reached": None,
    }  # fmt: skip


def test_the_faster_precision_of_a_baseline_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(precision, "_seconds", lambda dtype, work: seconds[dtype])
    assert precision.choose("fastest", lambda: None) == "bfloat16"
    seconds["bfloat16"] = 3.0
    assert precision.choose("fastest", lambda: None) == "float32"
    assert [precision.choose(choice, lambda: None) for choice in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_one_part_runs_and_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goals.main(["--toy", "--quick", "--parts", "greedy", "--out", str(tmp_path / "goals.json")])
    written = json.loads((tmp_path / "goals.json").read_text())
    assert written == json.loads(capsys.readouterr().out)
    (line,) = written["goals"]
    assert line["measured"] > 0 and len(line["rounds"]) == 2
    assert written["parts"]["greedy"]["precision"].keys() == {"earwise", "batch-loop"}
    assert written["machine"]["threads"] >= 1 and written["machine"]["commit"] == commit()


def test_decoding_is_a_rollout_without_its_prefill() -> None:
    rollout = PhaseOperators({PRODUCT: Total(5, 0.5), OTHER: Total(9, 0.9)}, {"add": Total(4, 0.4)}, 100.0)
    prefill = PhaseOperators({PRODUCT: Total(5, 0.4)}, {"add": Total(1, 0.1)}, 30.0)
    decoding = limit.without(rollout, prefill)
    assert decoding.products == {OTHER: Total(9, 0.9)}
    assert decoding.others["add"].calls == 3 and decoding.other_bytes == 70.0


def test_every_phase_of_a_step_is_set_against_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit.main(["--quick", "--out", str(tmp_path / "limit.json")])
    phases = json.loads((tmp_path / "limit.json").read_text())["phases"]
    assert tuple(phases) == limit.PHASES
    assert all(phase["seconds"] > 0 and phase["share"] > 0 for phase in phases.values())
    assert phases["backward"]["gflop"] > phases["forward"]["gflop"] > 0
    assert phases["decoding"]["few_rows_bandwidth"] > 0
    assert len(re.findall(" of the limit; ", capsys.readouterr().out)) == len(phases)


def test_the_page_has_the_figures_of_the_files() -> None:
    page = performance_page.PAGE.read_text(encoding="utf-8")
    assert {match["name"] for match in performance_page.BLOCK.finditer(page)} == performance_page.BLOCKS.keys()
    assert performance_page.rendered(page) == page, "run python benchmarks/performance_page.py"
    changed = page.replace("**7.16 times**", "**9.16 times**")
    assert "**9.16 times**" not in performance_page.rendered(changed)


def test_every_file_of_the_page_names_machine_and_commit() -> None:
    for name in performance_page.FILES:
        if (content := performance_page.result(name)) is not None:
            machine = content["machine"]
            assert machine["cpu"] and machine["commit"], name
            assert machine.get("threads") or machine["workers"], name


def test_goals_and_limits_are_shown_as_they_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"cpu": "A processor", "threads": 2, "commit": "abc1234"}
    measured = {
        "machine": machine, "amx": False, "rounds": 1,
        "goals": [goals.GOALS["sft"].line(7.04, [7.04], False), goals.GOALS["thoughts trl"].line(3.0, [3.0], False)],
        "parts": {"sft": {"precision": {"earwise": "bfloat16", "trainer-padded": "float32"}}},
    }  # fmt: skip
    phase = {
        "seconds": 0.5, "gflop": 12.0, "share": 0.61, "few_rows_bandwidth": None, "products": 0.8,
        "others": {"gelu": 0.1, "add": 0.001}, "outside": 0.05,
    }  # fmt: skip
    limits = {
        "machine": machine, "precision": "bfloat16", "phases": {"hearing": phase},
        "rates": {"gflops": {"float32": 150.0}, "gigabytes": 19.5},
    }  # fmt: skip
    monkeypatch.setattr(performance_page, "result", {"goals": measured, "limit": limits}.get)
    assert "| SFT step with ten questions a clip, times faster than the Trainer | 7.04 | 6.3 | yes |" in (
        performance_page.goals()
    )
    assert "| 3 | none | |" in performance_page.goals() and "sft: earwise bfloat16" in performance_page.goals()
    assert "| hearing | 0.50 | 12.0 | 61 % |  | 80 % | gelu 10 %, outside 5 % |" in performance_page.limits()
    assert "commit abc1234, products in bfloat16" in performance_page.limits()
