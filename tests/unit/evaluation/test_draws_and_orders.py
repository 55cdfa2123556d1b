"""Several completions of each item, and several orders of its options: estimators by hand and by enumeration."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, count
from pathlib import Path
from typing import Any

import pytest

from earwise.engine.base import Prompt, SamplingParams
from earwise.errors import ConfigError
from earwise.evaluation.aggregates.draws import draws_summary, majority_at, pass_at, weighted_majority_at
from earwise.evaluation.aggregates.orders import orders_summary
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.run import evaluate, evaluate_with_controls
from earwise.evaluation.terminal import as_text
from earwise.files import read_log
from earwise.types import Audio, Completion
from scripted_engine import ScriptedEngine, answer_by_pitch, answer_first_option, prompt_options, tone_task

SAMPLED = SamplingParams(temperature=1.0)


class WaveringEngine(ScriptedEngine):
    """Draws the right answer in `num_right` of `n` completions, and the first option in the others."""

    def __init__(self, num_right: int) -> None:
        super().__init__(answer_by_pitch)
        self.num_right, self.numbers_drawn = num_right, list[int]()

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        self.numbers_drawn.append(n)
        wrong = [
            f"<answer>{next(o for o in prompt_options(p) if o not in answer_by_pitch(p))}</answer>" for p in prompts
        ]
        return [
            [Completion(answer_by_pitch(prompt) if draw < self.num_right else other) for draw in range(n)]
            for prompt, other in zip(prompts, wrong, strict=True)
        ]


class SureEngine(WaveringEngine):
    """Draws right answers with a token confidence that falls from 9 to 3 nats, and wrong ones with 2 throughout."""

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        assert sampling_params.confidence_top_k == (20 if n > 1 else 0)
        return [
            [
                replace(completion, confidences=(9.0, 6.0, 3.0) if draw < self.num_right else (2.0, 2.0, 2.0))
                for draw, completion in enumerate(group)
            ]
            for group in super().generate(prompts, sampling_params, n)
        ]


@pytest.mark.parametrize("num_right", range(6))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_completion(num_right: int) -> None:
    right = [number < num_right for number in range(5)]
    for k in range(1, 6):
        subsets = list(combinations(right, k))
        assert pass_at(num_right, 5, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_majority_by_hand() -> None:
    assert majority_at(["a", "a", "b"], [True, True, False], 3) == 1
    assert majority_at(["a", "b", "b"], [True, False, False], 3) == 0
    assert majority_at(["a", "b"], [True, False], 2) == 0.5, "a tie counts in part, whatever the order"
    assert majority_at(["a", "a", "b"], [True, True, False], 1) == pytest.approx(2 / 3)
    # Of the pairs of a, a, b one agrees on a (right) and two are tied.
    assert majority_at(["a", "a", "b"], [True, True, False], 2) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert majority_at([None, None, "a"], [False, False, True], 3) == 1, "what cannot be read is no vote"
    assert majority_at([None, None], [False, False], 2) == 0
    many = majority_at(["a"] * 20 + ["b"] * 20, [True] * 20 + [False] * 20, 7, seed=3)
    assert many == pytest.approx(0.5, abs=0.04) and many == majority_at(
        ["a"] * 20 + ["b"] * 20, [True] * 20 + [False] * 20, 7, seed=3
    )


def test_weighted_majority_by_hand() -> None:
    answers, right = ["a", "b", "b", None], [True, False, False, False]
    assert weighted_majority_at(answers, right, [3.0, 1.0, 1.0, 9.0], 4) == 1, "3 against 2"
    assert weighted_majority_at(answers, right, [2.0, 1.0, 1.0, 9.0], 4) == 0.5, "2 against 2"
    assert weighted_majority_at(answers, right, [2.0, 1.5, 1.5, 9.0], 4) == 0
    assert weighted_majority_at(answers, right, [2.0, 1.5, 1.5, 9.0], 4, share=0.1) == 1, "the most confident one"
    assert weighted_majority_at(answers, right, [3.0, 1.0, 1.0, 9.0], 1) == pytest.approx(1 / 4)
    # Pairs: a against b twice (right), a alone with None (right), b b and b None twice (wrong).
    assert weighted_majority_at(answers, right, [3.0, 1.0, 1.0, 9.0], 2) == pytest.approx(3 / 6)
    assert weighted_majority_at([None, None], [False, False], [1.0, 1.0], 2) == 0
    alike = [1.0] * 3
    assert weighted_majority_at(["a", "a", "b"], [True, True, False], alike, 2) == pytest.approx(2 / 3), "as unweighted"


def test_votes_of_a_run_are_weighted_by_confidence(tmp_path: Path) -> None:
    """One right completion against three wrong ones: 6 nats against 3 times 2 are a tie, 9 at the best a win."""
    options = EvalOptions(samples=4, sampling_params=SAMPLED, confidence_window=1)
    metrics = evaluate(SureEngine(num_right=1), tone_task(tmp_path, 8), tmp_path / "run", options)
    weighted = {name: at["4"]["accuracy"] for name, at in metrics["draws"]["weighted_majority_at"].items()}
    assert weighted == {
        "mean": 0.5, "tail": 0.0, "bottom_window": 0.0, "min_window": 0.0,
        "tail_top10": 1.0, "bottom_window_top10": 1.0,
    }  # fmt: skip
    assert metrics["draws"]["majority_at"]["4"]["accuracy"] == 0
    (row, *_) = read_log(tmp_path / "run" / "samples.jsonl")
    assert row["draws"][0]["confidence"] == {"mean": 6.0, "tail": 3.0, "bottom_window": 3.0, "min_window": 3.0}
    assert "100.0 weighted by confidence (tail_top10)" in as_text(metrics)
    with pytest.raises(ConfigError, match="made with other settings"):
        evaluate(
            SureEngine(1), tone_task(tmp_path, 8), tmp_path / "run", EvalOptions(samples=4, sampling_params=SAMPLED)
        )
    with pytest.raises(ConfigError, match="confidence_window 5 is for the votes of several completions"):
        EvalOptions(confidence_window=5)


def test_draws_of_a_run(tmp_path: Path) -> None:
    engine, examples = WaveringEngine(num_right=1), tone_task(tmp_path, 8)
    options = EvalOptions(samples=4, sampling_params=SAMPLED, batch=4)
    metrics = evaluate(engine, examples, tmp_path / "run", options)
    assert set(engine.numbers_drawn) == {4}, "all completions of an item from one call of the engine"
    draws = metrics["draws"]
    assert (draws["n"], draws["k"], draws["mean"]) == (8, 4, 0.25)
    assert {k: row["accuracy"] for k, row in draws["pass_at"].items()} == {"1": 0.25, "2": 0.5, "4": 1.0}
    assert draws["majority_at"]["4"]["accuracy"] == 0 and draws["majority_at"]["1"]["accuracy"] == 0.25
    assert metrics["accuracy"]["official"]["accuracy"] == 1, "the headline is that of the first completion"
    (row, *_) = read_log(tmp_path / "run" / "samples.jsonl")
    assert [draw["scores"]["official"] for draw in row["draws"]] == [1, 0, 0, 0] and row["draws"][0]["status"] == "ok"
    assert "pass      @1 25.0, @2 50.0, @4 100.0 (of 4 completions)" in as_text(metrics)
    assert "weighted_majority_at" not in draws and "weighted" not in as_text(metrics), "this engine reports none"
    with pytest.raises(ConfigError, match="samples: None there, 4 now"):
        evaluate(WaveringEngine(2), examples, tmp_path / "single", EvalOptions(sampling_params=SAMPLED))
        evaluate(WaveringEngine(2), examples, tmp_path / "single", options)
    with pytest.raises(ConfigError, match="samples 4 at temperature 0 are 4 times the same"):
        EvalOptions(samples=4)


def test_an_item_without_a_completion_is_wrong_in_every_draw(tmp_path: Path) -> None:
    examples = tone_task(tmp_path, 8)
    (tmp_path / "clips" / "1.wav").unlink()
    options = EvalOptions(samples=2, sampling_params=SAMPLED)
    metrics = evaluate(WaveringEngine(num_right=2), examples, tmp_path / "run", options)
    assert metrics["draws"]["n"] == 8 and metrics["draws"]["pass_at"]["2"]["accuracy"] == 7 / 8
    assert draws_summary([], "official") is None


def row(item: str, order: int, options: list[str], choice: int | None, right: bool) -> dict[str, Any]:
    return {
        "id": item,
        "permutation": order,
        "choices": options,
        "choice": choice,
        "scores": {"official": float(right)},
    }


def test_orders_by_hand() -> None:
    rows = [
        row("a", 0, ["x", "y"], 0, True), row("a", 1, ["y", "x"], 1, True),
        row("b", 0, ["x", "y"], 0, True), row("b", 1, ["y", "x"], 0, False),
        row("c", 0, ["x", "y"], None, False), row("c", 1, ["y", "x"], None, False),
        row("open", 0, [], None, True),
    ]  # fmt: skip
    summary = orders_summary(rows, "official")
    assert summary is not None
    assert (summary["k"], summary["n"]) == (2, 3), "an open question has one order"
    assert summary["accuracy"] == [2 / 3, 1 / 3] and summary["spread"] == pytest.approx(1 / 3)
    assert summary["deviation"] == pytest.approx(0.2357, abs=1e-4) and summary["mean_accuracy"] == 0.5
    assert summary["always_right"] == 1 / 3 and summary["consistency"] == 2 / 3


def test_a_habit_of_position_shows_in_the_orders(tmp_path: Path) -> None:
    examples = tone_task(tmp_path, 8)
    metrics = {
        name: evaluate(ScriptedEngine(respond), examples, tmp_path / name, EvalOptions(permutations=4))
        for name, respond in (("hears", answer_by_pitch), ("first", answer_first_option))
    }
    assert metrics["hears"]["permutations"]["consistency"] == 1 and metrics["hears"]["permutations"]["spread"] == 0
    first = metrics["first"]["permutations"]
    assert first["consistency"] == 0 and first["mean_accuracy"] == 0.25 and first["spread"] >= 0
    assert "over 4 orders of the options 25.0" in as_text(metrics["first"])
    stored = EvalOptions(shuffle_options=False)
    evaluate(ScriptedEngine(answer_first_option), examples, tmp_path / "stored", stored)
    orders = {tuple(row["choices"]) for row in read_log(tmp_path / "stored" / "samples.jsonl")}
    assert orders == {examples[0].choices}


def test_text_alone_has_no_clip(tmp_path: Path) -> None:
    numbers, prompts = count(), list[Prompt]()

    def answer(prompt: Prompt) -> str:
        prompts.append(prompt)
        return answer_by_pitch(prompt) if prompt.waveforms else f"<answer>guess {next(numbers)}</answer>"

    metrics = evaluate_with_controls(
        ScriptedEngine(answer), tone_task(tmp_path, 6), tmp_path / "run", blind=("text-only", "noise")
    )
    assert metrics["blind"]["text-only"]["accuracy"]["official"]["accuracy"] == 0
    assert metrics["blind"]["text-only"]["hearing_gain"]["official"]["difference"] == 1
    texts = prompts[6:12]
    assert all(not prompt.waveforms for prompt in texts)
    assert not any(isinstance(part, Audio) for prompt in texts for turn in prompt.turns for part in turn.parts)
    assert all(prompt.waveforms for prompt in prompts[12:])
