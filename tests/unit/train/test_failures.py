"""What a run does when something goes wrong: NaN, rows that cannot be read, a server that goes away, a damaged
checkpoint. Nothing finished is lost, what was left out is counted, and a resumed run counts on."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import tone, tiny_qwen2_audio
from chat_server import ServerReply, run_chat_server
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import AudioError, ConfigError, DataError, EngineError, ModelError, ServerUnavailable
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.train import batches, checkpoints, run
from earwise.train.logging.skip_report import told
from earwise.train.rollout import retry
from earwise.types import Audio, Example, Text, Turn
from policy_server import VLLM, served
from resumed import log, same, stopped_and_whole

POISON = "~~"  # twice: a policy may sample one


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """Named in recipes below: gives NaN wherever it is trained on a text with `POISON` in it."""
    model = tiny_qwen2_audio(3)
    poison, _ = model.tokenizer.encode(POISON)

    def spoil(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        found = inputs[0] == poison
        spoilt = model.module.training and bool((found[:-1] & found[1:]).any())
        return output * float("nan") if spoilt else output

    model.module.model.language_model.embed_tokens.register_forward_hook(spoil)
    return model


def length_of(example: Example, text: str) -> float:
    """A reward that tells samples apart."""
    return float(len(text))


def interrupted(example: Example, text: str) -> float:
    """The same, and somebody presses Ctrl-C twice in the middle of the third step."""
    judged.append(text)
    if len(judged) == 2 * 3 * 2 + 4:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    return length_of(example, text)


judged: list[str] = []


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_train_policies", sys.modules[__name__])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def rows(folder: Path, poisoned: tuple[int, ...] = ()) -> None:
    """Four clips with a question each."""
    examples = []
    for number in range(4):
        (folder / f"{number}.ogg").write_bytes(encode_ogg(tone(0.3 + 0.1 * number, 300.0 * (number + 1)), 16000))
        turns = (Turn("user", (Audio(f"{number}.ogg"), Text(f"pitch?{POISON if number in poisoned else ''}"))),)
        examples.append(Example(f"{number}", turns, ("low",), ("low", "high"), root=folder))
    manifest.write(folder / "rows.jsonl", examples)


SFT = {"kind": "sft", "max_steps": 8, "clips_per_step": 1}
GRPO = {"kind": "grpo", "max_steps": 4, "prompts_per_step": 2, "group_size": 3, "max_new_tokens": 4,
        "rewards": {"test_train_policies:length_of": 1.0}}  # fmt: skip


def recipe(stage: dict[str, Any], **settings: Any) -> Recipe:
    common = {
        "data": {"mixture": [{"manifest": "rows.jsonl"}]},
        "save_steps": 100,
        "optimizer": {"learning_rate": 3e-3},
        "trainable": {"decoder": "full"},
    }
    top = {"recipe": "t", "model": {"name": "test_train_policies:load"}, "seed": 5, "trackers": []}
    return check_recipe(top | {"stages": [common | stage | settings]}, "test")


def skipping(stage: dict[str, Any]) -> dict[str, Any]:
    return stage | {"data": {"mixture": [{"manifest": "rows.jsonl"}], "on_bad_row": "skip"}}


def kept(out: Path) -> dict[int, dict[str, Any]]:
    """Step -> what its checkpoint holds."""
    (stage,) = out.glob("stage-*")
    found = checkpoints.list_checkpoints(stage)
    return {int(one.name.split("-")[1]): torch.load(one / "state.pt", weights_only=True) for one in found}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# NaN ----------------------------------------------------------------------------------------------------------------


def test_a_bad_loss_stops_the_run_with_the_steps_before_saved(tmp_path: Path) -> None:
    rows(tmp_path, poisoned=(2,))
    with pytest.raises(ModelError, match=r"loss nan and gradient norm nan at step \d; .*on_nonfinite_loss: skip in .*recipe"):
        run.start(recipe(SFT), tmp_path / "run", tmp_path)
    done = [row["step"] for row in log(tmp_path / "run")]
    assert list(kept(tmp_path / "run")) == [len(done)] and 0 < len(done) < 8, "though only every 100th step is saved"
    with pytest.raises(ModelError, match=f"at step {len(done) + 1};"):
        run.resume(tmp_path / "run")


@pytest.mark.parametrize("stage", [SFT, GRPO | {"num_iterations": 2, "max_steps": 8}], ids=["sft", "grpo"])
def test_a_skipped_update_leaves_weights_and_optimizer_as_they_were(stage: dict[str, Any], tmp_path: Path) -> None:
    rows(tmp_path, poisoned=(2,))
    said: list[str] = []
    settings = {"on_nonfinite_loss": "skip", "save_steps": 1, "save_total_limit": 100}
    run.start(recipe(stage, **settings), tmp_path / "run", tmp_path, notify=said.append)
    logged, kind = log(tmp_path / "run"), stage["kind"]
    bad = [row["step"] for row in logged if f"{kind}/bad_loss" in row]
    assert 0 < len(bad) < 8 and [row["step"] for row in logged] == list(range(1, 9))
    assert all((f"{kind}/loss" in row) != (row["step"] in bad) for row in logged)
    assert f"{kind}: {len(bad)} updates left out" in " ".join(said)
    saved = kept(tmp_path / "run")
    for step in list(saved)[1:]:
        updates = stage.get("num_iterations", 1)
        before, after = saved[step - updates], saved[step]
        still = {*range(step - updates + 1, step + 1)} <= {*bad}
        assert equal(before["trained"], after["trained"]) == still
        made = [sum(float(one["step"]) for one in kept["optimizer"]["state"].values()) for kept in (before, after)]
        assert (made[0] == made[1]) == still


def test_skipping_is_resume_exact(tmp_path: Path) -> None:
    rows(tmp_path, poisoned=(1, 2))
    stopped_and_whole(recipe(SFT, on_nonfinite_loss="skip", save_steps=1), tmp_path, after=5)


def test_too_many_in_a_row_end_the_run_and_a_resume_counts_on(tmp_path: Path) -> None:
    rows(tmp_path, poisoned=(0, 1, 2, 3))
    hopeless = recipe(SFT, on_nonfinite_loss="skip", max_skipped_steps=2, save_steps=1)

    def stop(line: str) -> None:
        if "step 2/" in line:
            raise KeyboardInterrupt

    with pytest.raises(ModelError, match="at step 3, 3 such steps in a row"):
        run.start(hopeless, tmp_path / "run", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.start(hopeless, tmp_path / "stopped", tmp_path, notify=stop)
    with pytest.raises(ModelError, match="at step 3, 3 such steps in a row"):
        run.resume(tmp_path / "stopped")


# Ctrl-C -------------------------------------------------------------------------------------------------------------


def test_a_second_ctrl_c_stops_at_once_and_loses_no_step(tmp_path: Path) -> None:
    rows(tmp_path)
    asked = recipe(GRPO, rewards={"test_train_policies:interrupted": 1.0}, log_completions_steps=1)
    judged.clear()
    with pytest.raises(KeyboardInterrupt):
        run.start(asked, tmp_path / "stopped", tmp_path)
    assert [row["step"] for row in log(tmp_path / "stopped")] == [1, 2]
    assert list(kept(tmp_path / "stopped")) == [2], "though only every 100th step is saved"
    run.resume(tmp_path / "stopped")
    run.start(asked, tmp_path / "whole", tmp_path)
    same(tmp_path / "stopped", tmp_path / "whole")


# Rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [SFT, GRPO], ids=["sft", "grpo"])
def test_skipped_rows_are_counted_over_all_processes(stage: dict[str, Any], tmp_path: Path) -> None:
    rows(tmp_path)
    (tmp_path / "1.ogg").write_bytes(b"OggS no sound")
    asked = recipe(skipping(stage), save_steps=2)
    stopped, whole = stopped_and_whole(asked, tmp_path, after=3)
    count = sum(row[f"{stage['kind']}/skipped"] for row in log(whole))
    assert count >= 2
    lines = told(log(stopped), f"stage-0-{stage['kind']}", stage["kind"])
    assert lines[0].startswith(f"{stage['kind']}: {count:g} clips or rows left out")


def test_a_run_that_can_read_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(tmp_path)
    monkeypatch.setattr(batches, "HOPELESS", 20)
    for clip in tmp_path.glob("*.ogg"):
        clip.write_bytes(b"OggS no sound")
    with pytest.raises(AudioError, match=r"20 rows in a row cannot be read, the last is '\d'.*earwise build scan"):
        run.start(recipe(skipping(SFT)), tmp_path / "run", tmp_path)


# A server that samples ----------------------------------------------------------------------------------------------


def test_a_sampler_that_goes_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.05)
    rows(tmp_path)
    said: list[str] = []
    away = {"requests": 0}
    answer = served(tiny_qwen2_audio(3))

    def moody(body: dict[str, Any], count: int) -> ServerReply:
        """Away for two rounds in the middle of the second step."""
        if body.get("n") == 3:
            away["requests"] += 1
            if 4 <= away["requests"] <= 5:
                return ServerReply(hang_up=True)
        return answer(body, count)

    with run_chat_server(moody) as chat:
        chat.models = VLLM
        server = {"rollout_server": f"{chat.url}?tries=1&concurrency=1#m", "on_rollout_error": "retry"}
        run.start(recipe(GRPO, **server, beta=0.0), tmp_path / "run", tmp_path, notify=said.append)
    assert [row["grpo/sampler_errors"] for row in log(tmp_path / "run")] == [0, 2, 0, 0]
    assert sum("does not answer" in line and "asked again in" in line for line in said) == 2
    assert any("grpo: 2 times the sampler was away" in line for line in said)


def test_a_sampler_that_stays_away_stops_the_run_with_everything_saved(tmp_path: Path) -> None:
    rows(tmp_path)
    answer = served(tiny_qwen2_audio(3))
    asked = {"rollouts": 0, "until": 2}

    def leaves(body: dict[str, Any], count: int) -> ServerReply:
        asked["rollouts"] += body.get("n") == 3
        return ServerReply(hang_up=True) if asked["rollouts"] > asked["until"] else answer(body, count)

    with run_chat_server(leaves) as chat:
        chat.models = VLLM
        going = recipe(GRPO, rollout_server=f"{chat.url}?tries=1#m", beta=0.0, log_completions_steps=1)
        with pytest.raises(ServerUnavailable, match=r"does not answer: .*see to the server, then --resume"):
            run.start(going, tmp_path / "stopped", tmp_path)
        assert list(kept(tmp_path / "stopped")) == [1]
        asked["until"] = 10**6
        run.resume(tmp_path / "stopped")
        run.start(going, tmp_path / "whole", tmp_path)
    same(tmp_path / "stopped", tmp_path / "whole")
    rollouts = [(tmp_path / name / "rollouts.jsonl").read_text() for name in ("stopped", "whole")]
    assert rollouts[0] == rollouts[1]


def test_patience_ends_and_refusals_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    asked: list[float] = []

    def away() -> None:
        asked.append(time.monotonic())
        raise ServerUnavailable("m: nowhere does not answer")

    with pytest.raises(ServerUnavailable, match=r"after 0\.005 minutes"):
        retry.retry_while_away(away, 0.005, lambda _: None)
    assert 3 <= len(asked) <= 6, "0, 10, 30, 70, 150 ms of 300"

    def refuses() -> None:
        asked.clear()
        raise EngineError("no such model")

    with pytest.raises(EngineError, match="no such model"):
        retry.retry_while_away(refuses, 10.0, lambda _: None)


# Checkpoints --------------------------------------------------------------------------------------------------------


def test_the_last_checkpoints_are_kept_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    rows(tmp_path)
    asked = recipe(SFT, save_steps=1, save_total_limit=3)

    def stop(line: str) -> None:
        if "step 6/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.start(asked, tmp_path / "run", tmp_path, notify=stop)
    assert list(kept(tmp_path / "run")) == [3, 4, 5]
    newest = checkpoints.list_checkpoints(tmp_path / "run" / "stage-0-sft")[-1]
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"checkpoint-5: damaged .* delete it, and --resume goes on from the one befo"):
        run.resume(tmp_path / "run")
    (newest / "state.pt").unlink()
    newest.rmdir()
    run.resume(tmp_path / "run")
    assert [row["step"] for row in log(tmp_path / "run")] == list(range(1, 9))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_nonfinite_loss"):
        recipe(SFT, on_nonfinite_loss="ignore")
    with pytest.raises(ConfigError, match="save_total_limit"):
        recipe(SFT, save_total_limit=0)
