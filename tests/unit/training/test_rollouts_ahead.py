"""Rollouts one step ahead: a server samples while the policy is updated; the loss corrects for its older weights."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import tiny_qwen2_audio, write_two_questions
from chat_server import run_chat_server
from earwise.config.recipe import check_recipe
from earwise.data.manifest_path import STARTER
from earwise.errors import ConfigError
from earwise.training import run
from policy_server import LORA, STAGE
from updatable_server import UpdatableServer

TRAINABLE = LORA | {"connector": "full"}
AHEAD = {"max_staleness": 1}


class Stopped(Exception):
    """What ends a run in the middle."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_qwen2_audio(4).save(tmp_path / "base")
    write_two_questions(tmp_path)
    return tmp_path


def recipe_of(folder: Path, server: str, weight_sync: dict[str, Any], **settings: Any) -> Any:
    stage = STAGE | {"rollout_server": server, "weight_sync": weight_sync, "trainable": TRAINABLE} | settings
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    return check_recipe({"recipe": "t", "model": model, "stages": [stage]}, "t")


def train(folder: Path, name: str, weight_sync: dict[str, Any], stop_at: str | None = None, **settings: Any) -> Path:
    """Train against a new server, from the start or, where the folder exists, from where it was stopped."""

    def notify(line: str) -> None:
        if stop_at is not None and stop_at in line:
            raise Stopped

    server = UpdatableServer("earwise", folder / "base")
    with run_chat_server(server.respond) as chat:
        server.start(chat)
        out = folder / name
        if out.exists():  # the server has another port now
            record = json.loads((out / "recipe.json").read_text())
            record["recipe"]["stages"][0]["rollout_server"] = f"{chat.url}#m"
            (out / "recipe.json").write_text(json.dumps(record))
            return run.resume(out).parent
        recipe = recipe_of(folder, f"{chat.url}#m", weight_sync, **settings)
        return run.start(recipe, out, folder, notify=notify).parent


def rows(out: Path) -> list[dict[str, Any]]:
    """The log without times, and without what is checked once in every process."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    left_out = ("second", "per_s", "hearing")
    return [{key: row[key] for key in row if not any(part in key for part in left_out)} for row in lines]


def weights(out: Path) -> dict[str, Any]:
    """The trained values of the last checkpoint."""
    (stage,) = out.glob("stage-*")
    newest = max(stage.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    content: dict[str, Any] = torch.load(newest / "state.pt", weights_only=True)
    return content["trained"]


def test_all_steps_but_the_first_learn_from_weights_one_version_older(folder: Path) -> None:
    log = rows(train(folder, "ahead", AHEAD))
    assert [row["grpo/staleness"] for row in log] == [0, 1, 1, 1]
    assert [row["grpo/ratio_mean"] for row in log] == [1.0] * 4, "the policy before the update is the policy"
    factors = [row["grpo/sampling_ratio"] for row in log]
    assert abs(factors[0] - 1) < 1e-4 and max(abs(factor - 1) for factor in factors[1:]) > 1e-3, factors


def test_with_weights_that_do_not_change_it_equals_the_synchronous_run(folder: Path) -> None:
    still = {"optimizer": {"learning_rate": 1e-12, "lr_scheduler_type": "constant"}}
    ahead, synchronous = (rows(train(folder, name, sync, **still)) for name, sync in (("a", AHEAD), ("s", {})))
    assert [row["ids"] for row in ahead] == [row["ids"] for row in synchronous]
    for name in ("grpo/reward", "grpo/length", "grad_norm"):
        assert [row[name] for row in ahead] == pytest.approx([row[name] for row in synchronous], abs=1e-4), name


def test_a_resumed_run_trains_on_the_rollouts_that_were_sampled_ahead(folder: Path) -> None:
    whole = train(folder, "whole", AHEAD)
    with pytest.raises(Stopped):
        train(folder, "resumed", AHEAD, stop_at="grpo step 3/4")
    resumed = train(folder, "resumed", AHEAD)
    assert rows(resumed) == rows(whole)
    assert weights(resumed).keys() == weights(whole).keys()
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


def test_the_server_samples_while_the_policy_is_updated(folder: Path) -> None:
    """Sampling for the second step waits until the first step is logged: it is over only after that update."""
    server, logged = UpdatableServer("earwise", folder / "base"), threading.Event()
    waited: list[bool] = []

    def respond(body: dict[str, Any], count: int) -> Any:
        if len({name for call, name in server.calls if call == "load"}) == 2 and not waited:
            waited.append(logged.wait(60))
        return server.respond(body, count)

    def notify(line: str) -> None:
        if "grpo step 1/" in line:
            logged.set()

    with run_chat_server(respond) as chat:
        server.start(chat)
        run.start(recipe_of(folder, f"{chat.url}#m", AHEAD, max_steps=2), folder / "run", folder, notify=notify)
    assert waited and all(waited)


def test_a_server_that_fails_ahead_ends_the_run_with_its_message(folder: Path) -> None:
    server = UpdatableServer("earwise", folder / "base")

    def respond(body: dict[str, Any], count: int) -> Any:
        if len([call for call, _ in server.calls if call == "load"]) == 3:
            raise RuntimeError("out of order")
        return server.respond(body, count)

    with run_chat_server(respond) as chat:
        server.start(chat)
        with pytest.raises(Exception, match=re.escape(chat.url.removesuffix("/v1"))):
            run.start(recipe_of(folder, f"{chat.url}#m", AHEAD), folder / "run", folder)
    assert [row["step"] for row in rows(folder / "run")] == [1, 2], "finished steps are kept"


@pytest.mark.parametrize(
    ("sync", "settings", "message"),
    [
        (AHEAD | {"steps": 2}, {}, "set weight_sync.steps: 1"),
        (AHEAD, {"temperature": 0.7}, "set temperature: 1"),
        ({"importance_sampling_cap": 3.0}, {}, "it is for max_staleness: 1"),
        ({"max_staleness": 2}, {}, "less than or equal to 1"),
    ],
    ids=["interval", "temperature", "cap alone", "two steps"],
)
def test_what_cannot_be_corrected_for_is_refused(
    folder: Path, sync: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(folder, "http://127.0.0.1:1/v1#m", sync, **settings)


def start_server(*options: str) -> "tuple[subprocess.Popen[str], str]":
    """`earwise serve` in another process, and its address."""
    program = [sys.executable, "-m", "earwise", "serve", "--port", "0", *options]
    server = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r" at (http://127\.0\.0\.1:\d+)/v1", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, f"{found[1]}/v1#embedded"
    raise AssertionError("the server did not start")


@pytest.mark.weights
def test_with_the_real_server_on_real_clips(tmp_path: Path) -> None:
    server, address = start_server("--allow-weight-updates")
    try:
        stage = STAGE | {
            "rollout_server": address, "weight_sync": AHEAD, "trainable": TRAINABLE, "max_steps": 3, "beta": 0.04,
            "data": {"mixture": [{"manifest": str(STARTER / "val.jsonl")}]},
            "optimizer": {"learning_rate": 1e-4, "lr_scheduler_type": "constant"},
        }  # fmt: skip
        recipe = check_recipe({"recipe": "t", "model": {"name": "embedded"}, "stages": [stage]}, "t")
        log = rows(run.start(recipe, tmp_path / "run", tmp_path).parent)
    finally:
        server.terminate()
        server.wait(30)
    assert [row["grpo/staleness"] for row in log] == [0, 1, 1]
    assert abs(log[0]["grpo/sampling_ratio"] - 1) < 1e-2 and all(0.5 < row["grpo/sampling_ratio"] < 2 for row in log)
