"""Rewards during training: slow, asynchronous and failing ones, a language model as judge, balanced and resampled
groups."""

import asyncio
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from builders import tiny_qwen2_audio, tone, user_question
from chat_server import ServerReply, run_chat_server
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.stages import JudgeConfig
from earwise.data import manifest
from earwise.errors import ConfigError, EarwiseError, EngineError, ScoringError
from earwise.evaluation.rows import is_formatted
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.prompts import hierarchical_tags, prompt_turns, target_text
from earwise.training import run
from earwise.training.rollout import judge
from earwise.training.rollout.adaptive_rewards import AdaptiveRewards, reward_factors
from earwise.training.rollout.reward_runner import RewardRunner, rollout_stats, step_metrics
from earwise.types import Completion, Example, Text

CHOICES = Example("x", user_question("Which sound?"), answer=("car horn",), choices=("dog", "car horn"))
RIGHT, WRONG = "<answer>car horn</answer>", "<answer>dog</answer>"


def thought(words: int | str, answer: str = RIGHT) -> str:
    text = words if isinstance(words, str) else " ".join(["w"] * words)
    return f"<think>{text}</think>{answer}"


def test_thinking_is_balanced_by_hand() -> None:
    """Three of four think, first of two steps: factors e^-0.75 and e^-0.25; second step: their roots; then 1."""
    group = said(thought("A car horn."), thought("A dog.", WRONG), thought("w"), RIGHT)
    balance = AdaptiveRewards(2)
    balance.observe([group[:2], group[2:]], 0)
    assert balance.thinking_share == 0.75
    assert reward_factors(0.75, 0.0) == pytest.approx((0.472367, 0.778801), abs=1e-6)
    assert reward_factors(0.75, 0.5) == pytest.approx((0.687289, 0.882497), abs=1e-6)
    assert reward_factors(0.75, 1.0) == (1.0, 1.0)
    plain, times = (balance.functions()[name] for name in ("adaptive_thinking", "adaptive_consistent"))
    texts = [one.text for one in group] + [WRONG]
    think, answer = 0.472367, 0.778801
    worth = [think, -(1 - think), think, 2 * answer, -answer - 2 * (1 - answer)]
    assert [plain(CHOICES, text) for text in texts] == pytest.approx(worth, abs=1e-5)
    led = [1.5 * think, worth[1], think, 3 * answer, worth[4]]
    assert [times(CHOICES, text) for text in texts] == pytest.approx(led, abs=1e-5)
    balance.observe([group], 1)
    assert plain(CHOICES, texts[0]) == pytest.approx(0.687289, abs=1e-6), "the same functions follow the step"


def test_prompts_that_leave_thinking_or_tags_to_the_model() -> None:
    from dataclasses import replace

    asked = prompt_turns(CHOICES, "adaptive")[-1].parts[-1]
    assert "If it helps" in str(asked)
    assert target_text(CHOICES, "adaptive") == RIGHT
    thinks = replace(CHOICES, reasoning="It honks.")
    assert target_text(thinks, "adaptive") == "<think>It honks.</think>\n" + RIGHT
    assert target_text(thinks, "answer") == RIGHT
    assert is_formatted(RIGHT, "adaptive") and is_formatted(thought("a"), "adaptive")
    spoken = Example(
        "s", user_question("Write it down."), ("Ja.",), task="transcription", category="speech", language="de"
    )
    (turn,) = prompt_turns(spoken, "tags")
    assert turn.parts[-1] == Text("<|startoftranscript|><|de|><|transcription|><|de|>Write it down.")
    assert hierarchical_tags(CHOICES) == "<|startofanalysis|><|unknown|><|question-answer|><|en|>"


# What a user might hand in; named in recipes and benches below as `test_reward_runner:NAME`.
def throws(_: Example, completion: str) -> float:
    if "bad" in completion:
        raise ValueError("no such file")
    return 1.0


def hangs(_: Example, completion: str) -> float:
    time.sleep(30 if "bad" in completion else 0)
    return 1.0


async def slow(_: Example, completion: str) -> float:
    await asyncio.sleep(0.2 if "bad" not in completion else 30)
    return float(len(completion))


def nothing(_: Example, completion: str) -> float:
    return float("nan") if "bad" in completion else 1.0


def never_told(_: Example, completion: str) -> float:
    raise RuntimeError("the disk is gone")


def letters(_: Example, completion: str) -> float:
    return float(sum(c in "etaoinshrdlu" for c in completion))


def rarely(_: Example, completion: str) -> float:
    """One letter is worth something: most groups of a random model earn nothing at all."""
    return float(completion[:1] in "abcdefghij")


def throws_at_times(_: Example, completion: str) -> float:
    if completion[:1] in "abcdefghijklmnopqrstuvwxyz":
        raise ValueError("letters")
    return letters(_, completion)


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_reward_runner", sys.modules[__name__])


def said(*texts: str) -> list[Completion]:
    return [Completion(text, (1, 2)) for text in texts]


GROUPS = [said("fine", "good"), said("bad", "good")]


@pytest.mark.parametrize("name", ["throws", "hangs", "slow", "nothing"])
def test_a_reward_that_fails_is_counted_and_handled_as_the_recipe_says(name: str) -> None:
    full = f"test_reward_runner:{name}"

    def reward_runner(policy: Any) -> RewardRunner:
        return RewardRunner({full: 2.0, "format_answer": 1.0}, timeout_s=0.5, on_error=policy)

    began = time.monotonic()
    with pytest.raises(ScoringError, match=rf"{name}' failed on example 'x' .*on_reward_error: zero or skip_group"):
        reward_runner("stop").compute([CHOICES, CHOICES], GROUPS)
    zero = reward_runner("zero").compute([CHOICES, CHOICES], GROUPS)
    worth = 8.0 if name == "slow" else 2.0
    assert zero.totals == [[worth, worth], [0.0, worth]]
    assert zero.errors == {full: 1}
    assert zero.means[full] == worth / 2, "over the three that it could be told of"
    skipped = reward_runner("skip_group").compute([CHOICES, CHOICES], GROUPS)
    assert skipped.totals == [[worth, worth], None]
    assert time.monotonic() - began < 5, "what hangs is left behind"
    metrics = step_metrics([rollout_stats(GROUPS, skipped)])
    assert metrics["reward_errors"] == 1 and metrics["flat_groups"] == 0.5 and metrics["reward"] == worth


def test_asynchronous_rewards_wait_together() -> None:
    reward_runner = RewardRunner({"test_reward_runner:slow": 1.0}, timeout_s=5.0, on_error="stop")
    began = time.monotonic()
    verdicts = reward_runner.compute([CHOICES] * 3, [said(*["abc"] * 8)] * 3)
    assert verdicts.totals == [[3.0] * 8] * 3
    assert time.monotonic() - began < 1.5, "24 calls of 0.2 s, one after the other, take 4.8 s"


def opinion(body: dict[str, Any], _: int) -> ServerReply:
    """5 of 5 for a loud horn, else 2; some things it does not judge."""
    text = body["messages"][0]["content"]
    if "refuse" in text:
        return ServerReply("I would rather not.")
    return ServerReply('{"score": 5}' if "loud horn" in text else 'Here: {"score": 2}')


def test_judge_as_reward() -> None:
    """Two thoughts are worth 1 and 1/4, so an answer without one is worth 5/8; the error is worth 0 and in no mean."""
    with run_chat_server(opinion) as chat:
        config = JudgeConfig(server=f"{chat.url}#m")
        own = {"judge": judge.judge_reward(config, 5.0)}
        reward_runner = RewardRunner({"judge": 1.0}, timeout_s=5.0, on_error="zero", bound_functions=own)
        group = said(thought("a loud horn"), thought("whatever"), thought("refuse"), RIGHT)
        verdicts = reward_runner.compute([CHOICES], [group])
    assert verdicts.totals == [[1.0, 0.25, 0.0, 0.625]]
    assert verdicts.errors == {"judge": 1} and "I would rather not" in verdicts.reason
    assert len(chat.bodies) == 3, "what has no reasoning is not asked about"
    asked = next(b["messages"][0]["content"] for b in chat.bodies if "loud horn" in b["messages"][0]["content"])
    assert "Options: dog, car horn" in asked and "Answer given: car horn" in asked


def test_no_thought_is_worth_the_mean_thought_of_the_batch() -> None:
    """Of the batch, not of its own group: 1, 1/4, 1/4 in the first group, 1 in the second: 2.5 / 4 = 0.625, weighed
    0.5; rewards that judge everything stay as they are. Where nobody thinks, nobody is told from another."""
    with run_chat_server(opinion) as chat:
        own = {"judge": judge.judge_reward(JudgeConfig(server=f"{chat.url}#m"), 5.0)}
        reward_runner = RewardRunner(
            {"judge": 0.5, "format_answer": 1.0}, timeout_s=5.0, on_error="stop", bound_functions=own
        )
        horn, other = thought("a loud horn"), thought("whatever")
        mixed = reward_runner.compute(
            [CHOICES, CHOICES], [said(horn, other, other, WRONG), said(RIGHT, horn, RIGHT, "dog")]
        )
        silent = reward_runner.compute([CHOICES], [said(RIGHT, "dog")])
    assert mixed.totals == [[0.5, 0.125, 0.125, 1.3125], [1.3125, 0.5, 1.3125, 0.3125]]
    assert mixed.means == {"judge": 0.625, "format_answer": 3 / 8} and not mixed.errors
    assert silent.totals == [[1.0, 0.0]] and silent.means["judge"] == 0.0


def test_a_judge_that_is_not_there_is_an_error_of_the_reward() -> None:
    config = JudgeConfig(server="http://127.0.0.1:9/v1?tries=1#m")
    own = {"judge": judge.judge_reward(config, 2.0)}
    with pytest.raises(ScoringError, match="judge' failed") as raised:
        RewardRunner({"judge": 1.0}, timeout_s=2.0, on_error="stop", bound_functions=own).compute(
            [CHOICES], [said(thought("a"))]
        )
    assert isinstance(raised.value.__cause__, EngineError)


@pytest.mark.parametrize(("text", "value"), [('{"score": 1}', 0.0), ('{"score": 3}', 0.5), ('x {"score": 5} y', 1.0)])
def test_points(text: str, value: float) -> None:
    assert judge.parse_score(text, 5) == value


@pytest.mark.parametrize("text", ["", "5", '{"score": 6}', '{"score": "good"}', '{"score": true}', '{"mark": 3}', "{"])
def test_what_is_no_score_is_never_one(text: str) -> None:
    with pytest.raises(ScoringError, match="no score from 1 to 5"):
        judge.parse_score(text, 5)


# In the GRPO stage --------------------------------------------------------------------------------------------------


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """Named in recipes below as `test_reward_runner:load`."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "0.wav").write_bytes(encode_ogg(tone(0.5), 16000))
    examples = [Example(f"r{number}", user_question(f"{number}?"), ("low",), root=tmp_path) for number in range(12)]
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path


def recipe(reward: str, **settings: object) -> Recipe:
    stage = {
        "kind": "grpo", "max_steps": 3, "prompts_per_step": 3, "group_size": 4, "max_new_tokens": 4, "beta": 0.0,
        "rewards": {f"test_reward_runner:{reward}": 1.0}, "pack_tokens": 600, "save_steps": 100,
        "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "log_completions_steps": 1,
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "full"},
        "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    top = {"recipe": "t", "model": {"name": "test_reward_runner:load"}, "seed": 5}
    return check_recipe(top | {"stages": [stage | settings]}, "t")


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_balances_its_own_steps(rows: Path) -> None:
    """A byte model never writes tags: nobody thinks and all is wrong, worth -g - 2 (1 - g) where g = e^-(1 - s/3)."""
    plain = recipe("rarely", rewards={"adaptive_thinking": 1.0})
    run.start(plain, rows / "plain", rows)
    run.start(recipe("rarely", rewards={"adaptive_thinking": 1.0}, balance_thinking=True), rows / "balanced", rows)
    assert [row["grpo/reward"] for row in log(rows / "plain")] == [-1.0] * 3
    assert "grpo/thinking" not in log(rows / "plain")[0]
    factor = [math.exp(-(1 - step / 3)) for step in range(3)]
    assert [row["grpo/reward"] for row in log(rows / "balanced")] == pytest.approx([g - 2 for g in factor])
    assert [row["grpo/thinking"] for row in log(rows / "balanced")] == [0.0] * 3
    with pytest.raises(ConfigError, match="balance_thinking is for the rewards adaptive_thinking"):
        recipe("rarely", balance_thinking=True)


def test_dynamic_sampling_replaces_groups_without_signal(rows: Path) -> None:
    plain, dynamic = rows / "plain", rows / "dynamic"
    run.start(recipe("rarely", max_steps=4), plain, rows)
    run.start(recipe("rarely", max_steps=4, dynamic_sampling=6), dynamic, rows)
    assert max(row["grpo/flat_groups"] for row in log(plain)) > 0.5
    for row in log(dynamic):
        assert row["grpo/signal_groups"] == 3 or row["grpo/rounds"] == 6
    assert max(row["grpo/rounds"] for row in log(dynamic)) > 1
    assert sum(row["grpo/signal_groups"] for row in log(dynamic)) > 6
    keys = [(row["step"], row["id"]) for row in map(json.loads, (dynamic / "rollouts.jsonl").open())]
    assert len(keys) > len(log(plain)) * 3, "replaced groups are in the log as well"


def test_several_updates_of_a_rollout_are_clipped(rows: Path) -> None:
    """The second update of a rollout meets ratios away from 1: with a narrow clip most tokens are held."""
    settings = {
        "num_iterations": 3,
        "max_steps": 3,
        "max_new_tokens": 8,
        "optimizer": {"learning_rate": 1e-2, "lr_scheduler_type": "constant"},
    }
    narrow, wide = rows / "narrow", rows / "wide"
    run.start(recipe("letters", epsilon=0.01, **settings), narrow, rows)
    run.start(recipe("letters", epsilon=100.0, **settings), wide, rows)
    held = [row["grpo/clip_frac"] for row in log(narrow)]
    assert held[0] == 0, "on policy"
    assert min(held[1], held[2]) > 0.1
    assert max(row["grpo/clip_frac"] for row in log(wide)) == 0
    assert log(narrow)[2]["grpo/ratio_mean"] != log(wide)[2]["grpo/ratio_mean"], "and moves the policy less"
    distance = [abs(log(out)[2]["grpo/ratio_mean"] - 1) for out in (narrow, wide)]
    assert distance[0] < distance[1]


@pytest.mark.parametrize("policy", ["zero", "skip_group"])
def test_a_failing_reward_does_not_end_the_run(rows: Path, policy: str) -> None:
    out = rows / policy
    run.start(recipe("throws_at_times", on_reward_error=policy, max_new_tokens=1), out, rows)
    assert len(log(out)) == 3
    assert sum(row["grpo/reward_errors"] for row in log(out)) > 0
    with pytest.raises(ScoringError, match=r"throws_at_times' failed on example 'r"):
        run.start(recipe("throws_at_times", max_new_tokens=1), rows / "stop", rows)


def test_a_step_without_any_verdict_changes_nothing_and_the_run_goes_on(rows: Path) -> None:
    out = rows / "never"
    run.start(recipe("never_told", on_reward_error="skip_group", max_steps=2), out, rows)
    assert [(row["grpo/reward_errors"], row["grpo/tokens"]) for row in log(out)] == [(12, 0), (12, 0)]


def test_judge_and_its_server_need_each_other() -> None:
    with pytest.raises(ConfigError, match="need each other"):
        recipe("letters", judge={"server": "http://127.0.0.1:1/v1#m"})
    with pytest.raises(ConfigError, match="need each other"):
        recipe("letters", rewards={"judge": 1.0})
    with pytest.raises(EarwiseError, match="is none of accuracy"):
        RewardRunner({"juge": 1.0}, timeout_s=1.0, on_error="stop")
