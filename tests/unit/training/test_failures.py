"""Failures during a run: NaN, rows that cannot be read, a server that goes away, a damaged checkpoint. No finished step
is lost, everything that is skipped is counted, and a resumed run continues counting."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import tiny_qwen2_audio, tone
from chat_server import ServerReply, run_chat_server
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import AudioError, ConfigError, DataError, EngineError, ModelError, ServerUnavailable
from earwise.training import checkpoints, clip_loader, run
from earwise.training.control.out_of_memory import explain_out_of_memory
from earwise.training.logging.skip_report import skip_summary
from earwise.training.rollout import retry
from earwise.types import Audio, Example, Text, Turn
from nan_model import NAN_MODEL, NAN_TEXT
from policy_server import VLLM, serve_policy
from resumed import assert_same_result, metrics_rows, run_interrupted_and_whole


def length_of(example: Example, text: str) -> float:
    """A reward that differs between completions."""
    return float(len(text))


def interrupting(example: Example, text: str) -> float:
    """The same reward, with Ctrl-C pressed twice in the middle of the third step."""
    rewarded_texts.append(text)
    if len(rewarded_texts) == 2 * 3 * 2 + 4:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    return length_of(example, text)


rewarded_texts: list[str] = []


def write_rows(folder: Path, nan_rows: tuple[int, ...] = ()) -> None:
    """Write a manifest of four clips with a question each; training on the rows `nan_rows` gives NaN."""
    examples = []
    for number in range(4):
        (folder / f"{number}.ogg").write_bytes(encode_ogg(tone(0.3 + 0.1 * number, 300.0 * (number + 1)), 16000))
        turns = (Turn("user", (Audio(f"{number}.ogg"), Text(f"pitch?{NAN_TEXT if number in nan_rows else ''}"))),)
        examples.append(Example(f"{number}", turns, ("low",), ("low", "high"), root=folder))
    manifest.write(folder / "rows.jsonl", examples)


SFT = {"kind": "sft", "max_steps": 8, "clips_per_step": 1}
GRPO = {"kind": "grpo", "max_steps": 4, "prompts_per_step": 2, "group_size": 3, "max_new_tokens": 4,
        "rewards": {f"{__name__}:length_of": 1.0}}  # fmt: skip


def recipe(stage: dict[str, Any], **settings: Any) -> Recipe:
    common = {
        "data": {"mixture": [{"manifest": "rows.jsonl"}]},
        "save_steps": 100,
        "optimizer": {"learning_rate": 3e-3},
        "trainable": {"decoder": "full"},
    }
    top = {"recipe": "t", "model": {"name": NAN_MODEL}, "seed": 5, "trackers": []}
    return check_recipe(top | {"stages": [common | stage | settings]}, "test")


def skipping_bad_rows(stage: dict[str, Any]) -> dict[str, Any]:
    """The stage with `on_bad_row: skip`."""
    return stage | {"data": {"mixture": [{"manifest": "rows.jsonl"}], "on_bad_row": "skip"}}


def saved_checkpoints(out: Path) -> dict[int, dict[str, Any]]:
    """Step -> content of its checkpoint."""
    (stage,) = out.glob("stage-*")
    folders = checkpoints.list_checkpoints(stage)
    return {int(path.name.split("-")[1]): torch.load(path / "state.pt", weights_only=True) for path in folders}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether tensors of the same names are equal bit for bit."""
    return all(torch.equal(first[name], second[name]) for name in first)


# NaN ----------------------------------------------------------------------------------------------------------------


def test_nonfinite_loss_stops_the_run_with_all_earlier_steps_saved(tmp_path: Path) -> None:
    write_rows(tmp_path, nan_rows=(2,))
    with pytest.raises(
        ModelError, match=r"loss nan and gradient norm nan at step \d; .*on_nonfinite_loss: skip in .*recipe"
    ):
        run.start(recipe(SFT), tmp_path / "run", tmp_path)
    steps = [row["step"] for row in metrics_rows(tmp_path / "run")]
    assert list(saved_checkpoints(tmp_path / "run")) == [len(steps)], "although only every 100th step is saved"
    assert 0 < len(steps) < 8
    with pytest.raises(ModelError, match=f"at step {len(steps) + 1};"):
        run.resume(tmp_path / "run")


def test_a_run_that_diverged_goes_back_to_the_regular_checkpoint(tmp_path: Path) -> None:
    """The steps before the bad one are saved too, but not in place of the last regular checkpoint."""
    write_rows(tmp_path, nan_rows=(0,))
    with pytest.raises(ModelError) as stopped:
        run.start(recipe(SFT, save_steps=2), tmp_path / "run", tmp_path)
    regular, newest = saved_checkpoints(tmp_path / "run")
    assert (regular % 2, newest) == (0, regular + 1)
    spoilt = tmp_path / "run" / "stage-0-sft" / f"checkpoint-{newest}"
    assert f"delete {spoilt} first: back to step {regular}" in str(stopped.value)
    state = torch.load(spoilt / "state.pt", weights_only=True)
    torch.save(
        state | {"trained": {name: 1e9 * value for name, value in state["trained"].items()}}, spoilt / "state.pt"
    )
    with pytest.raises(
        ModelError, match=rf"checkpoint-{newest}: .*delete it, and --resume goes on from the one before"
    ):
        run.resume(tmp_path / "run")
    (spoilt / "state.pt").unlink()
    spoilt.rmdir()
    messages: list[str] = []
    with pytest.raises(ModelError, match=f"at step {newest + 1};"):
        run.resume(tmp_path / "run", notify=messages.append)
    assert f"sft: resumed after step {regular}" in messages


@pytest.mark.parametrize("stage", [SFT, GRPO | {"num_iterations": 2, "max_steps": 8}], ids=["sft", "grpo"])
def test_skipped_update_changes_neither_weights_nor_optimizer(stage: dict[str, Any], tmp_path: Path) -> None:
    write_rows(tmp_path, nan_rows=(2,))
    messages: list[str] = []
    settings = {"on_nonfinite_loss": "skip", "save_steps": 1, "save_total_limit": 100}
    run.start(recipe(stage, **settings), tmp_path / "run", tmp_path, notify=messages.append)
    rows, kind = metrics_rows(tmp_path / "run"), stage["kind"]
    skipped = [row["step"] for row in rows if f"{kind}/bad_loss" in row]
    assert 0 < len(skipped) < 8 and [row["step"] for row in rows] == list(range(1, 9))
    assert all((f"{kind}/loss" in row) != (row["step"] in skipped) for row in rows)
    assert f"{kind}: {len(skipped)} updates skipped" in " ".join(messages)
    saved = saved_checkpoints(tmp_path / "run")
    for step in list(saved)[1:]:
        updates = stage.get("num_iterations", 1)
        before, after = saved[step - updates], saved[step]
        all_skipped = {*range(step - updates + 1, step + 1)} <= {*skipped}
        assert equal(before["trained"], after["trained"]) == all_skipped
        num_updates = [
            sum(float(state["step"]) for state in checkpoint["optimizer"]["state"].values())
            for checkpoint in (before, after)
        ]
        assert (num_updates[0] == num_updates[1]) == all_skipped


def test_run_with_skipped_updates_resumes_exactly(tmp_path: Path) -> None:
    write_rows(tmp_path, nan_rows=(1, 2))
    run_interrupted_and_whole(recipe(SFT, on_nonfinite_loss="skip", save_steps=1), tmp_path, after=5)


def test_too_many_consecutive_skips_end_the_run_and_a_resume_continues_counting(tmp_path: Path) -> None:
    write_rows(tmp_path, nan_rows=(0, 1, 2, 3))
    only_nan = recipe(SFT, on_nonfinite_loss="skip", max_skipped_steps=2, save_steps=1)

    def interrupt(line: str) -> None:
        if "step 2/" in line:
            raise KeyboardInterrupt

    with pytest.raises(ModelError, match="at step 3, 3 such steps in a row"):
        run.start(only_nan, tmp_path / "run", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.start(only_nan, tmp_path / "stopped", tmp_path, notify=interrupt)
    with pytest.raises(ModelError, match="at step 3, 3 such steps in a row"):
        run.resume(tmp_path / "stopped")


# Ctrl-C -------------------------------------------------------------------------------------------------------------


def test_second_ctrl_c_stops_at_once_and_loses_no_finished_step(tmp_path: Path) -> None:
    write_rows(tmp_path)
    resolved = recipe(GRPO, rewards={f"{__name__}:interrupting": 1.0}, log_completions_steps=1)
    rewarded_texts.clear()
    with pytest.raises(KeyboardInterrupt):
        run.start(resolved, tmp_path / "stopped", tmp_path)
    assert [row["step"] for row in metrics_rows(tmp_path / "stopped")] == [1, 2]
    assert list(saved_checkpoints(tmp_path / "stopped")) == [2], "although only every 100th step is saved"
    run.resume(tmp_path / "stopped")
    run.start(resolved, tmp_path / "whole", tmp_path)
    assert_same_result(tmp_path / "stopped", tmp_path / "whole")


# Memory -------------------------------------------------------------------------------------------------------------


def test_a_full_memory_of_the_machine_names_the_settings_that_need_less(tmp_path: Path) -> None:
    (config,) = recipe(SFT).stages
    with (
        pytest.raises(
            ModelError, match=r"^s: this machine's memory is full .*kept.*gradient_checkpointing: true, .*lora"
        ),
        explain_out_of_memory("s", config),
    ):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="another"), explain_out_of_memory("s", config):
        raise RuntimeError("another fault")


# Rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [SFT, GRPO], ids=["sft", "grpo"])
def test_skipped_rows_are_counted_over_all_processes(stage: dict[str, Any], tmp_path: Path) -> None:
    write_rows(tmp_path)
    (tmp_path / "1.ogg").write_bytes(b"OggS no sound")
    resolved = recipe(skipping_bad_rows(stage), save_steps=2)
    stopped, whole = run_interrupted_and_whole(resolved, tmp_path, after=3)
    count = sum(row[f"{stage['kind']}/skipped"] for row in metrics_rows(whole))
    assert count >= 2
    lines = skip_summary(metrics_rows(stopped), f"stage-0-{stage['kind']}", stage["kind"])
    assert lines[0].startswith(f"{stage['kind']}: {count:g} clips or rows skipped")


def test_run_without_any_readable_row_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path)
    monkeypatch.setattr(clip_loader, "MAX_UNREADABLE_ROWS", 20)
    for clip in tmp_path.glob("*.ogg"):
        clip.write_bytes(b"OggS no sound")
    message = r"the audio of 20 consecutive rows cannot be read, the last is '\d'.*earwise build scan"
    with pytest.raises(AudioError, match=message):
        run.start(recipe(skipping_bad_rows(SFT)), tmp_path / "run", tmp_path)


# Rollout server ----------------------------------------------------------------------------------------------------


def test_rollout_server_that_goes_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.05)
    write_rows(tmp_path)
    messages: list[str] = []
    num_requests = 0
    respond = serve_policy(tiny_qwen2_audio(3))

    def respond_unless_away(body: dict[str, Any], count: int) -> ServerReply:
        """Hang up on two requests in the middle of the second step."""
        nonlocal num_requests
        if body.get("n") == 3:
            num_requests += 1
            if 4 <= num_requests <= 5:
                return ServerReply(hang_up=True)
        return respond(body, count)

    with run_chat_server(respond_unless_away) as chat:
        chat.models = VLLM
        server = {"rollout_server": f"{chat.url}?tries=1&concurrency=1#m", "on_rollout_error": "retry"}
        run.start(recipe(GRPO, **server, beta=0.0), tmp_path / "run", tmp_path, notify=messages.append)
    assert [row["grpo/sampler_errors"] for row in metrics_rows(tmp_path / "run")] == [0, 2, 0, 0]
    assert sum("does not answer" in line and "asked again in" in line for line in messages) == 2
    assert any("grpo: 2 requests to the rollout server that failed" in line for line in messages)


def test_rollout_server_that_stays_away_stops_the_run_with_everything_saved(tmp_path: Path) -> None:
    write_rows(tmp_path)
    respond = serve_policy(tiny_qwen2_audio(3))
    num_requests, max_requests = 0, 2

    def respond_until_limit(body: dict[str, Any], count: int) -> ServerReply:
        nonlocal num_requests
        num_requests += body.get("n") == 3
        return ServerReply(hang_up=True) if num_requests > max_requests else respond(body, count)

    with run_chat_server(respond_until_limit) as chat:
        chat.models = VLLM
        resolved = recipe(GRPO, rollout_server=f"{chat.url}?tries=1#m", beta=0.0, log_completions_steps=1)
        with pytest.raises(ServerUnavailable, match=r"does not answer: .*start the server again, then --resume"):
            run.start(resolved, tmp_path / "stopped", tmp_path)
        assert list(saved_checkpoints(tmp_path / "stopped")) == [1]
        max_requests = 10**6
        run.resume(tmp_path / "stopped")
        run.start(resolved, tmp_path / "whole", tmp_path)
    assert_same_result(tmp_path / "stopped", tmp_path / "whole")
    rollouts = [(tmp_path / name / "rollouts.jsonl").read_text() for name in ("stopped", "whole")]
    assert rollouts[0] == rollouts[1]


def test_retries_end_after_the_time_limit_and_refusals_are_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    request_times: list[float] = []

    def request_to_nobody() -> None:
        request_times.append(time.monotonic())
        raise ServerUnavailable("m: nowhere does not answer")

    with pytest.raises(ServerUnavailable, match=r"after 0\.005 minutes"):
        retry.retry_while_away(request_to_nobody, 0.005, lambda _: None)
    assert 3 <= len(request_times) <= 6, "requests at 0, 10, 30, 70 and 150 of 300 ms"

    def refused_request() -> None:
        request_times.clear()
        raise EngineError("no such model")

    with pytest.raises(EngineError, match="no such model"):
        retry.retry_while_away(refused_request, 10.0, lambda _: None)


# Checkpoints --------------------------------------------------------------------------------------------------------


def test_newest_checkpoints_are_kept_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path)
    resolved = recipe(SFT, save_steps=1, save_total_limit=3)

    def interrupt(line: str) -> None:
        if "step 6/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.start(resolved, tmp_path / "run", tmp_path, notify=interrupt)
    assert list(saved_checkpoints(tmp_path / "run")) == [3, 4, 5]
    newest = checkpoints.list_checkpoints(tmp_path / "run" / "stage-0-sft")[-1]
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"checkpoint-5: damaged .* delete it, and --resume goes on from the one befo"):
        run.resume(tmp_path / "run")
    (newest / "state.pt").unlink()
    newest.rmdir()
    run.resume(tmp_path / "run")
    assert [row["step"] for row in metrics_rows(tmp_path / "run")] == list(range(1, 9))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_nonfinite_loss"):
        recipe(SFT, on_nonfinite_loss="ignore")
    with pytest.raises(ConfigError, match="save_total_limit"):
        recipe(SFT, save_total_limit=0)
