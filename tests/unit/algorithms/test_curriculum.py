"""The order that is asked for is the order that is trained on: by hand, through the mixture, and in the log of a run on
a tiny random model; resumed runs go on with the same order and the same rates."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from builders import tiny_qwen2_audio
from earwise.algorithms.curriculum import Band, EasyToHard, OnlineBand, pass_count, pass_rate, within_band
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.data.mixture import Mixture
from earwise.errors import ConfigError, DataError
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training import run
from earwise.types import Audio, Example, Text, Turn
from resumed import run_interrupted_and_whole


def rated(name: str, passes: int | None, attempts: int = 8) -> Example:
    meta = {} if passes is None else {"pass_count": passes, "attempts": attempts, "pass_rate": passes / attempts}
    return Example(name, (), ("a",), meta=meta)


POOL = [rated(f"{passes}/8 {letter}", passes) for letter in "ab" for passes in (0, 5, 8, 3, 6, 2)]


def test_pass_rates_are_those_that_build_difficulty_writes() -> None:
    assert pass_count(rated("a", 3)) == (3, 8) and pass_rate(rated("a", 4, 16)) == 0.25
    assert pass_count(rated("a", None)) is None
    with pytest.raises(DataError, match=r"'bare' has no pass_count.*earwise build difficulty"):
        pass_rate(rated("bare", None))


def test_a_band_compares_other_numbers_of_attempts_by_their_rate() -> None:
    assert [POOL[number].id for number in within_band(POOL, Band(3, 6, 8))] == [
        "5/8 a", "3/8 a", "6/8 a", "5/8 b", "3/8 b", "6/8 b",
    ]  # fmt: skip
    assert [Band(3, 6, 8).contains(passes, 16) for passes in (5, 6, 12, 13)] == [False, True, True, False]
    of_four = [rated(str(passes), passes, 4) for passes in range(5)]
    assert within_band(of_four, Band(3, 6, 8)) == [2, 3] and within_band(of_four, Band(2, 8, 8)) == [1, 2, 3, 4]
    with pytest.raises(DataError, match="none of 12 rows passed 1 to 1 of 8"):
        within_band(POOL, Band(1, 1, 8))
    with pytest.raises(DataError, match="'bare'"):
        within_band([*POOL, rated("bare", None)], Band())


def test_easy_to_hard_is_strict_and_equal_rates_stand_by_seed() -> None:
    rates = [pass_rate(example) for example in POOL]
    stream = list(islice(Mixture([(POOL, 1.0)], seed=4, order=EasyToHard([rates], 4)), 24))
    for epoch in (stream[:12], stream[12:]):
        assert [example.id[0] for example in epoch] == list("886655332200")
        assert len({example.id for example in epoch}) == 12
    orders = {tuple(EasyToHard([rates], seed)(0, 0)) for seed in range(20)}
    assert len(orders) > 10, "among equal rates the seed decides"


def test_each_source_has_an_order_of_its_own_and_a_resumed_stream_keeps_it() -> None:
    sources = [(POOL, 1.0), ([rated(f"other {passes}", passes) for passes in (1, 7, 4)], 1.0)]
    order = EasyToHard([[pass_rate(example) for example in pool] for pool, _ in sources], 0)
    whole = [example.id for example in islice(Mixture(sources, 0, order=order), 20)]
    assert [name for name in whole if name.startswith("other")][:3] == ["other 7", "other 4", "other 1"]
    assert [name[0] for name in whole if not name.startswith("other")][:4] == list("8866")
    first = Mixture(sources, 0, order=order)
    list(islice(first, 7))
    later = Mixture(sources, 0, order=order)
    later.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [example.id for example in islice(later, 13)] == whole[7:]


def test_online_rates_start_as_measured_and_follow_the_policy() -> None:
    online = OnlineBand(Band(3, 6, 8), exploration=1e-12, seed=0)
    easy, fresh = rated("easy", 16, 16), rated("fresh", None)
    assert online.admits(fresh) and not online.admits(easy), "never tried: taken; solved: not"
    online.observe(easy, 2, 8)
    assert online.pass_count(easy) == (4 + 2, 4 + 8), (
        "what was before counts half as much as the group: 4 of 4 attempts"
    )
    assert online.admits(easy)
    online.observe(fresh, 8, 8)
    assert online.pass_count(fresh) == (8, 8) and not online.admits(fresh)
    online.observe(fresh, 0, 8)
    assert online.pass_count(fresh) == (4, 12) and not online.admits(fresh), "a third is under 3 of 8"
    online.observe(fresh, 4, 8)
    assert online.pass_count(fresh) == pytest.approx((4 / 3 + 4, 12)) and online.admits(fresh)


def test_online_looks_again_at_what_is_outside_now_and_then_and_resumes_with_the_same_chances() -> None:
    solved = rated("solved", 8)
    online = OnlineBand(Band(), exploration=0.1, seed=3)
    taken = [online.admits(solved) for _ in range(4000)]
    assert abs(sum(taken) / 4000 - 0.1) < 0.015
    early = OnlineBand(Band(), exploration=0.1, seed=3)
    early.observe(rated("x", None), 3, 8)
    assert [early.admits(solved) for _ in range(1000)] == taken[:1000]
    later = OnlineBand(Band(), exploration=0.1, seed=3)
    later.load_state_dict(json.loads(json.dumps(early.state_dict())))
    assert [later.admits(solved) for _ in range(3000)] == taken[1000:] and later.pass_count(rated("x", None)) == (3, 8)


# A run on a tiny random model ----------------------------------------------------------------------------------------


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


def long_enough(_: Example, completion: str) -> float:
    """A reward that a byte model sometimes earns."""
    return float(sum(c in "etaoinshrdlu" for c in completion) > 0)


PASSES = (1, 8, 3, 6, 0, 5, 4, 7)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Eight clips of one tone each, rated."""
    examples = []
    for number, passes in enumerate(PASSES):
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(np.arange(6000) * 0.05 * (number + 1)), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("pitch?"))),)
        meta = {"pass_count": passes, "attempts": 8}
        row = Example(f"p{passes}", turns, ("low",), ("low", "high"), root=tmp_path, meta=meta)
        examples.append(replace(row, reasoning="It hums. It is slow.", rejected=("high",)))
    manifest.write(tmp_path / "rows.jsonl", examples)
    return tmp_path / "rows.jsonl"


def recipe(kind: str, curriculum: dict[str, Any], **more: Any) -> Recipe:
    stage: dict[str, Any] = {
        "kind": kind, "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "pack_tokens": 400, "save_steps": 1,
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "full"}, "curriculum": curriculum,
        "max_steps": 4, "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    stage |= (
        {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 4, "beta": 0.0,
         "rewards": {f"{__name__}:long_enough": 1.0}}
        if kind == "grpo"
        else {"clips_per_step": 2, "questions_per_clip": 1}
    )  # fmt: skip
    if kind == "gkd":
        stage |= {"teacher_context": "answer", "max_new_tokens": 4}
    if kind == "compress":
        stage |= {"steps_per_unit": 1, "data": stage["data"] | {"styles": {"think": 1.0}}}
    return check_recipe({"recipe": "t", "model": {"name": f"{__name__}:load"}, "stages": [stage | more]}, "test")


def trained_on(out: Path) -> list[list[str]]:
    return [json.loads(line)["ids"] for line in (out / "metrics.jsonl").read_text().splitlines()]


KINDS = ["sft", "grpo", "dpo", "compress", "gkd"]


@pytest.mark.parametrize("kind", KINDS)
def test_easy_to_hard_is_what_the_log_says_was_trained_on(rows: Path, kind: str) -> None:
    run.start(recipe(kind, {"order": "easy_to_hard"}), rows.parent / "run", rows.parent)
    assert trained_on(rows.parent / "run") == [["p8", "p7"], ["p6", "p5"], ["p4", "p3"], ["p1", "p0"]]


@pytest.mark.parametrize("kind", KINDS)
def test_banded_leaves_out_what_is_too_easy_or_too_hard(rows: Path, kind: str) -> None:
    run.start(recipe(kind, {"order": "banded"}), rows.parent / "run", rows.parent)
    trained_ids = [name for step in trained_on(rows.parent / "run") for name in step]
    assert sorted(trained_ids[:4]) == sorted(trained_ids[4:]) == ["p3", "p4", "p5", "p6"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_temperature_reach_every_stage(rows: Path, kind: str) -> None:
    """Two easy rows by weight 8 against six others by weight 1: at T 1 they come 8 of 9 times, at T 1e9 every other."""
    all_rows = manifest.read(rows)
    manifest.write(
        rows.parent / "easy.jsonl", [replace(row, task="easy") for row in all_rows if row.id in ("p8", "p7")]
    )
    sources = [{"manifest": "easy.jsonl", "weight": 8.0}, {"manifest": "rows.jsonl"}]
    easy_shares = []
    for temperature in (1.0, 1e9):
        data = {"mixture": sources, "mixture_temperature": temperature}
        data |= {"styles": {"think": 1.0}} if kind == "compress" else {}
        out = rows.parent / f"run {temperature}"
        run.start(recipe(kind, {"order": "shuffled"}, data=data, max_steps=8), out, rows.parent)
        state = torch.load(out / f"stage-0-{kind}/checkpoint-8/state.pt", weights_only=True)["extra"]["mixture"]
        easy_shares.append(state["counts"][0] / sum(state["counts"]))
        assert sum(state["counts"]) == 16
    assert easy_shares[0] > 0.7 and 0.3 < easy_shares[1] < 0.7


def test_sampled_prompts_are_those_of_the_log(rows: Path) -> None:
    every = recipe("grpo", {"order": "easy_to_hard"}, log_completions_steps=1)
    run.start(every, rows.parent / "run", rows.parent)
    sampled = [json.loads(line) for line in (rows.parent / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in sampled] == [name for step in trained_on(rows.parent / "run") for name in step]


@pytest.mark.parametrize("order", ["easy_to_hard", "online"])
def test_a_stopped_run_goes_on_with_the_same_order_bit_for_bit(rows: Path, order: str) -> None:
    online = {"reward": f"{__name__}:long_enough", "exploration": 0.3, "band": {"low": 3, "high": 7}}
    config = recipe("grpo", {"order": order} | (online if order == "online" else {}), max_steps=6)
    stopped, whole = run_interrupted_and_whole(config, rows.parent, after=4)
    assert len(trained_on(whole)) == 6
    whole_state, stopped_state = (
        torch.load(out / "stage-0-grpo/checkpoint-6/state.pt", weights_only=True) for out in (whole, stopped)
    )
    assert whole_state["extra"].get("online") == stopped_state["extra"].get("online")
    if order == "online":
        counts = whole_state["extra"]["online"]["seen"]
        assert set(counts) == {name for step in trained_on(whole) for name in step}


def test_what_cannot_be_ordered_is_said_at_once() -> None:
    for kind in ("sft", "dpo", "compress", "gkd"):
        with pytest.raises(ConfigError, match=rf"order online needs rewards .* stage of kind {kind} has none"):
            recipe(kind, {"order": "online"})
    with pytest.raises(ConfigError, match="low 7, high 6, attempts 8"):
        recipe("grpo", {"order": "banded", "band": {"low": 7}})
    with pytest.raises(ConfigError, match=r"unknown key 'stages.0.curriculum.ordr'; did you mean 'order'"):
        recipe("grpo", {"ordr": "online"})
