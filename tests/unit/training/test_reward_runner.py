"""Rewards during training: slow, asynchronous and failing rewards, a language model as judge, adaptive rewards and
dynamic sampling."""

import asyncio
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import tiny_qwen2_audio, tone, user_question
from chat_server import ServerReply, run_chat_server
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.servers import JudgeConfig
from earwise.data import manifest
from earwise.errors import ConfigError, EarwiseError, EngineError, ScoringError
from earwise.evaluation.rows import is_formatted
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.prompts import hierarchical_tags, prompt_turns, target_text
from earwise.training import run
from earwise.training.rollout import judge
from earwise.training.rollout.adaptive_rewards import AdaptiveRewards, reward_factors
from earwise.training.rollout.reward_runner import RewardRunner, RolloutStats, reward_keys, rollout_stats, step_metrics
from earwise.types import Completion, Example, Text

CHOICES = Example("x", user_question("Which sound?"), answer=("car horn",), choices=("dog", "car horn"))
RIGHT, WRONG = "<answer>car horn</answer>", "<answer>dog</answer>"


def with_reasoning(words: int | str, answer: str = RIGHT) -> str:
    """A completion with reasoning: the given text, or the given number of words."""
    text = words if isinstance(words, str) else " ".join(["w"] * words)
    return f"<think>{text}</think>{answer}"


def test_adaptive_rewards_by_hand() -> None:
    """Three of four completions think. Factors of the first of two steps: e^-0.75 and e^-0.25; of the second: their
    square roots; after the last: 1."""
    group = completions_of(with_reasoning("A car horn."), with_reasoning("A dog.", WRONG), with_reasoning("w"), RIGHT)
    adaptive = AdaptiveRewards(2)
    adaptive.observe([group[:2], group[2:]], 0)
    assert adaptive.thinking_share == 0.75
    assert reward_factors(0.75, 0.0) == pytest.approx((0.472367, 0.778801), abs=1e-6)
    assert reward_factors(0.75, 0.5) == pytest.approx((0.687289, 0.882497), abs=1e-6)
    assert reward_factors(0.75, 1.0) == (1.0, 1.0)
    thinking_reward, consistency_reward = (
        adaptive.functions()[name] for name in ("adaptive_thinking", "adaptive_consistent")
    )
    texts = [completion.text for completion in group] + [WRONG]
    think, answer = 0.472367, 0.778801
    expected = [think, -(1 - think), think, 2 * answer, -answer - 2 * (1 - answer)]
    assert [thinking_reward(CHOICES, text) for text in texts] == pytest.approx(expected, abs=1e-5)
    expected_consistency = [1.5 * think, expected[1], think, 3 * answer, expected[4]]
    assert [consistency_reward(CHOICES, text) for text in texts] == pytest.approx(expected_consistency, abs=1e-5)
    adaptive.observe([group], 1)
    assert thinking_reward(CHOICES, texts[0]) == pytest.approx(0.687289, abs=1e-6), "the functions follow the step"


def test_prompts_of_styles_adaptive_and_tags() -> None:
    instruction = prompt_turns(CHOICES, "adaptive")[-1].parts[-1]
    assert "If it helps" in str(instruction)
    assert target_text(CHOICES, "adaptive") == RIGHT
    reasoned = replace(CHOICES, reasoning="It honks.")
    assert target_text(reasoned, "adaptive") == "<think>It honks.</think>\n" + RIGHT
    assert target_text(reasoned, "answer") == RIGHT
    assert is_formatted(RIGHT, "adaptive") and is_formatted(with_reasoning("a"), "adaptive")
    for task in ("transcribe", "translate", "transcription", "translation"):  # the first two: data/sources
        spoken = Example("s", user_question("Write it down."), ("Ja.",), task=task, category="speech", language="de")
        (turn,) = prompt_turns(spoken, "tags")
        assert turn.parts[-1] == Text(f"<|startoftranscript|><|de|><|{task}|><|de|>Write it down.")
    assert hierarchical_tags(CHOICES) == "<|startofanalysis|><|unknown|><|question-answer|><|en|>"


# Rewards of a user; recipes and runners below name them by name.


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


def always_fails(_: Example, completion: str) -> float:
    raise RuntimeError("the disk is gone")


def letters(_: Example, completion: str) -> float:
    return float(sum(character in "etaoinshrdlu" for character in completion))


def rarely(_: Example, completion: str) -> float:
    """A reward that most groups of a random model do not earn at all."""
    return float(completion[:1] in "abcdefghij")


def throws_at_times(_: Example, completion: str) -> float:
    if completion[:1] in "abcdefghijklmnopqrstuvwxyz":
        raise ValueError("letters")
    return letters(_, completion)


def completions_of(*texts: str) -> list[Completion]:
    """Completions with these texts, two tokens each."""
    return [Completion(text, (1, 2)) for text in texts]


GROUPS = [completions_of("fine", "good"), completions_of("bad", "good")]


@pytest.mark.parametrize("name", ["throws", "hangs", "slow", "nothing"])
def test_failed_reward_is_counted_and_handled_as_the_recipe_says(name: str) -> None:
    full_name = f"{__name__}:{name}"

    def reward_runner(on_error: Any) -> RewardRunner:
        return RewardRunner({full_name: 2.0, "format_answer": 1.0}, timeout_s=0.5, on_error=on_error)

    started = time.monotonic()
    with pytest.raises(ScoringError, match=rf"{name}' failed on example 'x' .*on_reward_error: zero or skip_group"):
        reward_runner("stop").compute([CHOICES, CHOICES], GROUPS)
    zero = reward_runner("zero").compute([CHOICES, CHOICES], GROUPS)
    reward = 8.0 if name == "slow" else 2.0
    assert zero.totals == [[reward, reward], [0.0, reward]]
    assert zero.errors == {full_name: 1}
    assert zero.means[full_name] == reward / 2, "mean over the three calls that succeeded"
    skipped = reward_runner("skip_group").compute([CHOICES, CHOICES], GROUPS)
    assert skipped.totals == [[reward, reward], None]
    assert time.monotonic() - started < 5, "calls that hang are abandoned"
    metrics = step_metrics([rollout_stats(GROUPS, skipped)])
    assert metrics["reward_errors"] == 1 and metrics["flat_groups"] == 0.5 and metrics["reward"] == reward


def test_failure_of_a_users_reward_is_reported_with_its_place() -> None:
    line = next(
        number for number, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "the disk is gone" in text
    )
    reward_runner = RewardRunner({f"{__name__}:always_fails": 1.0}, timeout_s=1.0, on_error="stop")
    place = re.escape(f"(RuntimeError: the disk is gone, at {__file__}:{line})")
    with pytest.raises(ScoringError, match=place):
        reward_runner.compute([CHOICES, CHOICES], GROUPS)


def test_means_of_rewards_with_similar_names_do_not_overwrite_each_other() -> None:
    """Two rounds of one completion and three completions; each mean is (first sum + second sum) / 4."""
    names = ("accuracy", "accuracy_r1aqa", "format_answer", "my_r:brief", "my_r:brief_answer", "length")
    sums = ((1.0, 0.0, 1.0, 2.0, 4.0, 0.5), (1.0, 3.0, 2.0, 2.0, 0.0, 2.5))
    stats = [
        RolloutStats(
            groups=1, flat=0, completions=count, rewarded=count, reward_sum=0.0,
            part_sums=dict(zip(names, values, strict=True)), lengths=(20,) * count,
            truncated=(count == 1,) * count, errors=0,
        )
        for count, values in zip((1, 3), sums, strict=True)
    ]  # fmt: skip
    metrics = step_metrics(stats)
    expected = {
        "accuracy": 0.5, "accuracy_r1aqa": 0.75, "format": 0.75, "my_r:brief": 1.0, "my_r:brief_answer": 1.0,
        "length_reward": 0.75, "length": 20.0, "length_min": 20.0, "length_max": 20.0, "terminated_length": 20.0,
        "truncated": 0.25,
    }  # fmt: skip
    assert {key: metrics[key] for key in expected} == expected
    assert reward_keys(["accuracy_r1aqa", "format_think"]) == {
        "accuracy_r1aqa": "accuracy", "format_think": "format_think",
    }  # fmt: skip


def test_asynchronous_rewards_run_concurrently() -> None:
    reward_runner = RewardRunner({f"{__name__}:slow": 1.0}, timeout_s=5.0, on_error="stop")
    started = time.monotonic()
    rewards = reward_runner.compute([CHOICES] * 3, [completions_of(*["abc"] * 8)] * 3)
    assert rewards.totals == [[3.0] * 8] * 3
    assert time.monotonic() - started < 1.5, "24 calls of 0.2 s, one after the other, take 4.8 s"


def judge_reply(body: dict[str, Any], _: int) -> ServerReply:
    """The judge's reply: 5 of 5 for a loud horn, 2 otherwise, and no score for some texts."""
    text = body["messages"][0]["content"]
    if "refuse" in text:
        return ServerReply("I would rather not.")
    return ServerReply('{"score": 5}' if "loud horn" in text else 'Here: {"score": 2}')


def test_judge_as_reward() -> None:
    """Two completions score 1 and 1/4, so one without reasoning gets their mean 5/8; the error counts 0 and is not part
    of the mean."""
    with run_chat_server(judge_reply) as chat:
        config = JudgeConfig(server=f"{chat.url}#m")
        judge_function = {"judge": judge.judge_reward(config, 5.0)}
        reward_runner = RewardRunner({"judge": 1.0}, timeout_s=5.0, on_error="zero", bound_functions=judge_function)
        group = completions_of(
            with_reasoning("a loud horn"), with_reasoning("whatever"), with_reasoning("refuse"), RIGHT
        )
        rewards = reward_runner.compute([CHOICES], [group])
    assert rewards.totals == [[1.0, 0.25, 0.0, 0.625]]
    assert rewards.errors == {"judge": 1} and "I would rather not" in rewards.reason
    assert len(chat.bodies) == 3, "completions without reasoning are not sent to the judge"
    requests = [body["messages"][0]["content"] for body in chat.bodies]
    request = next(text for text in requests if "loud horn" in text)
    assert "Options: dog, car horn" in request and "Answer given: car horn" in request


def test_completion_without_reasoning_gets_the_mean_score_of_the_batch() -> None:
    """The mean is that of the batch, not of the completion's group: 1, 1/4, 1/4 in the first group and 1 in the second
    are 2.5 / 4 = 0.625, with weight 0.5. Other rewards are not affected. Without any reasoning the mean is 0."""
    with run_chat_server(judge_reply) as chat:
        judge_function = {"judge": judge.judge_reward(JudgeConfig(server=f"{chat.url}#m"), 5.0)}
        reward_runner = RewardRunner(
            {"judge": 0.5, "format_answer": 1.0}, timeout_s=5.0, on_error="stop", bound_functions=judge_function
        )
        horn, unclear = with_reasoning("a loud horn"), with_reasoning("whatever")
        mixed = reward_runner.compute(
            [CHOICES, CHOICES],
            [completions_of(horn, unclear, unclear, WRONG), completions_of(RIGHT, horn, RIGHT, "dog")],
        )
        without_reasoning = reward_runner.compute([CHOICES], [completions_of(RIGHT, "dog")])
    assert mixed.totals == [[0.5, 0.125, 0.125, 1.3125], [1.3125, 0.5, 1.3125, 0.3125]]
    assert mixed.means == {"judge": 0.625, "format_answer": 3 / 8} and not mixed.errors
    assert without_reasoning.totals == [[1.0, 0.0]] and without_reasoning.means["judge"] == 0.0


def test_unreachable_judge_is_a_failed_reward() -> None:
    config = JudgeConfig(server="http://127.0.0.1:9/v1?tries=1#m")
    judge_function = {"judge": judge.judge_reward(config, 2.0)}
    with pytest.raises(ScoringError, match="judge' failed") as raised:
        RewardRunner({"judge": 1.0}, timeout_s=2.0, on_error="stop", bound_functions=judge_function).compute(
            [CHOICES], [completions_of(with_reasoning("a"))]
        )
    assert isinstance(raised.value.__cause__, EngineError)


@pytest.mark.parametrize(("text", "value"), [('{"score": 1}', 0.0), ('{"score": 3}', 0.5), ('x {"score": 5} y', 1.0)])
def test_parse_score(text: str, value: float) -> None:
    assert judge.parse_score(text, 5) == value


@pytest.mark.parametrize("text", ["", "5", '{"score": 6}', '{"score": "good"}', '{"score": true}', '{"mark": 3}', "{"])
def test_reply_without_a_score_is_refused(text: str) -> None:
    with pytest.raises(ScoringError, match="no score from 1 to 5"):
        judge.parse_score(text, 5)


# In the GRPO stage --------------------------------------------------------------------------------------------------


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Folder with a manifest of twelve questions about one clip."""
    (tmp_path / "0.wav").write_bytes(encode_ogg(tone(0.5), 16000))
    examples = [Example(f"r{number}", user_question(f"{number}?"), ("low",), root=tmp_path) for number in range(12)]
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path


def recipe(reward: str, **settings: object) -> Recipe:
    stage = {
        "kind": "grpo", "max_steps": 3, "prompts_per_step": 3, "group_size": 4, "max_new_tokens": 4, "beta": 0.0,
        "rewards": {f"{__name__}:{reward}": 1.0}, "pack_tokens": 600, "save_steps": 100,
        "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "log_completions_steps": 1,
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "full"},
        "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    top = {"recipe": "t", "model": {"name": f"{__name__}:load"}, "seed": 5}
    return check_recipe(top | {"stages": [stage | settings]}, "t")


def metrics_rows(out: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_adaptive_rewards_in_a_run(rows: Path) -> None:
    """The byte model never writes tags: no completion thinks and all are wrong. Their reward is -g - 2 (1 - g) with
    g = e^-(1 - s/3)."""
    run.start(recipe("rarely", rewards={"adaptive_thinking": 1.0}), rows / "plain", rows)
    run.start(recipe("rarely", rewards={"adaptive_thinking": 1.0}, balance_thinking=True), rows / "balanced", rows)
    assert [row["grpo/reward"] for row in metrics_rows(rows / "plain")] == [-1.0] * 3
    assert "grpo/thinking" not in metrics_rows(rows / "plain")[0]
    factors = [math.exp(-(1 - step / 3)) for step in range(3)]
    assert [row["grpo/reward"] for row in metrics_rows(rows / "balanced")] == pytest.approx(
        [factor - 2 for factor in factors]
    )
    assert [row["grpo/thinking"] for row in metrics_rows(rows / "balanced")] == [0.0] * 3
    with pytest.raises(ConfigError, match="balance_thinking is for the rewards adaptive_thinking"):
        recipe("rarely", balance_thinking=True)


def test_dynamic_sampling_replaces_groups_without_signal(rows: Path) -> None:
    plain, dynamic = rows / "plain", rows / "dynamic"
    run.start(recipe("rarely", max_steps=4), plain, rows)
    run.start(recipe("rarely", max_steps=4, dynamic_sampling=6), dynamic, rows)
    assert max(row["grpo/flat_groups"] for row in metrics_rows(plain)) > 0.5
    for row in metrics_rows(dynamic):
        assert row["grpo/signal_groups"] == 3 or row["grpo/rounds"] == 6
    assert max(row["grpo/rounds"] for row in metrics_rows(dynamic)) > 1
    assert sum(row["grpo/signal_groups"] for row in metrics_rows(dynamic)) > 6
    keys = [(row["step"], row["id"]) for row in map(json.loads, (dynamic / "rollouts.jsonl").open())]
    assert len(keys) > len(metrics_rows(plain)) * 3, "replaced groups are logged as well"


def test_several_updates_of_a_rollout_are_clipped(rows: Path) -> None:
    """From the second update of a rollout on, ratios differ from 1; with a small epsilon most tokens are clipped."""
    settings = {
        "num_iterations": 3,
        "max_steps": 3,
        "max_new_tokens": 8,
        "optimizer": {"learning_rate": 1e-2, "lr_scheduler_type": "constant"},
    }
    narrow, wide = rows / "narrow", rows / "wide"
    run.start(recipe("letters", epsilon=0.01, **settings), narrow, rows)
    run.start(recipe("letters", epsilon=100.0, **settings), wide, rows)
    clipped = [row["grpo/clip_frac"] for row in metrics_rows(narrow)]
    assert clipped[0] == 0, "on policy"
    assert min(clipped[1], clipped[2]) > 0.1
    assert max(row["grpo/clip_frac"] for row in metrics_rows(wide)) == 0
    assert metrics_rows(narrow)[2]["grpo/ratio_mean"] != metrics_rows(wide)[2]["grpo/ratio_mean"], (
        "clipping changes the policy less"
    )
    distance = [abs(metrics_rows(out)[2]["grpo/ratio_mean"] - 1) for out in (narrow, wide)]
    assert distance[0] < distance[1]


@pytest.mark.parametrize("on_error", ["zero", "skip_group"])
def test_failing_reward_does_not_end_the_run(rows: Path, on_error: str) -> None:
    out = rows / on_error
    run.start(recipe("throws_at_times", on_reward_error=on_error, max_new_tokens=1), out, rows)
    assert len(metrics_rows(out)) == 3
    assert sum(row["grpo/reward_errors"] for row in metrics_rows(out)) > 0
    with pytest.raises(ScoringError, match=r"throws_at_times' failed on example 'r"):
        run.start(recipe("throws_at_times", max_new_tokens=1), rows / "stop", rows)


def test_step_without_any_reward_changes_nothing_and_the_run_continues(rows: Path) -> None:
    out = rows / "never"
    run.start(recipe("always_fails", on_reward_error="skip_group", max_steps=2), out, rows)
    assert [(row["grpo/reward_errors"], row["grpo/tokens"]) for row in metrics_rows(out)] == [(12, 0), (12, 0)]


def test_reward_judge_and_its_settings_need_each_other() -> None:
    with pytest.raises(ConfigError, match="need each other"):
        recipe("letters", judge={"server": "http://127.0.0.1:1/v1#m"})
    with pytest.raises(ConfigError, match="need each other"):
        recipe("letters", rewards={"judge": 1.0})
    with pytest.raises(EarwiseError, match="is none of accuracy"):
        RewardRunner({"juge": 1.0}, timeout_s=1.0, on_error="stop")
