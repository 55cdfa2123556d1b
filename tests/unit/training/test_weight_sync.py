"""Newer weights for a rollout server: a real HTTP server loads the policy's weights while it is trained."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import tiny_qwen2_audio, write_two_questions
from chat_server import ServerReply, run_chat_server
from earwise.config.recipe import check_recipe
from earwise.errors import ConfigError, EngineError
from earwise.training.rollout import weight_sync
from earwise.training.rollout.server_check import check_rollout_servers
from earwise.training.rollout.weight_sync import SyncMethod, check_support
from policy_server import FULL, LORA, STAGE, train_on_server
from updatable_server import UpdatableServer


@pytest.fixture(autouse=True)
def lora_for_every_family(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The server here adapts a tiny Qwen2-Audio with LoRA, as vLLM does with other families."""
    if "family" not in request.fixturenames:
        monkeypatch.setattr(weight_sync, "WITHOUT_VLLM_LORA", ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base checkpoint and two questions, about clips that 16 bits represent exactly."""
    tiny_qwen2_audio(4).save(tmp_path / "base")
    write_two_questions(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "method", "trainable"),
    [
        ("vllm", "lora", LORA),
        ("vllm", "weights", FULL),
        ("earwise", "lora", LORA | {"connector": "full"}),
        ("earwise", "weights", FULL),
    ],
)
def test_server_has_the_weights_of_the_policy_after_each_sync(
    folder: Path, kind: str, method: str, trainable: dict[str, Any]
) -> None:
    server = UpdatableServer(kind, folder / "base")
    with run_chat_server(server.respond) as chat:
        server.start(chat)
        ratios = train_on_server(folder, f"{chat.url}#m", {"method": method}, trainable)
    assert [abs(ratio - 1) < 1e-4 for ratio in ratios] == [True] * 4, ratios
    names = [name for call, name in server.calls if call in ("load", "update")]
    assert len(set(names)) == 4 and names[1].startswith("m-1-")
    assert len(list((folder / "run" / "stage-0-grpo" / "sampler").iterdir())) == 1, "older versions are deleted"
    assert [call for call, _ in server.calls].count("reset") == (12 if (kind, method) == ("vllm", "weights") else 0)
    if (kind, method) == ("vllm", "lora"):
        assert [name for call, name in server.calls if call == "unload"] == names[:-1]
        assert list(server.engines) == ["m", names[-1]]


def test_policy_and_server_drift_apart_without_sync(folder: Path) -> None:
    server = UpdatableServer("vllm", folder / "base")
    with run_chat_server(server.respond) as chat:
        server.start(chat)
        ratios = train_on_server(folder, f"{chat.url}#m", None, LORA)
    assert abs(ratios[0] - 1) < 1e-4
    assert max(abs(ratio - 1) for ratio in ratios[1:]) > 1e-2, ratios


def test_sync_every_second_step(folder: Path) -> None:
    server = UpdatableServer("vllm", folder / "base")
    with run_chat_server(server.respond) as chat:
        server.start(chat)
        ratios = train_on_server(folder, f"{chat.url}#m", {"steps": 2}, LORA)
    is_one = [abs(ratio - 1) < 1e-4 for ratio in ratios]
    assert is_one == [True, False, True, False], ratios


@pytest.mark.parametrize(
    ("kind", "settings", "trainable", "message"),
    [
        ("sglang", {"method": "weights"}, FULL, "is for vllm and earwise; .* is sglang"),
        ("", {}, LORA, "is unknown"),
        ("vllm", {}, FULL, "there is no LoRA"),
        ("vllm", {}, LORA | {"connector": "full"}, "set trainable.connector: frozen"),
    ],
)
def test_unsupported_combination_is_refused_before_training(
    folder: Path, kind: str, settings: dict[str, Any], trainable: dict[str, Any], message: str
) -> None:
    server = UpdatableServer(kind, folder / "base")
    with run_chat_server(server.respond) as chat:
        server.start(chat)
        with pytest.raises(ConfigError, match=message):
            train_on_server(folder, f"{chat.url}#m", settings, trainable)


def test_server_that_allows_no_updates_stops_the_run_with_one_line(folder: Path) -> None:
    server = UpdatableServer("vllm", folder / "base")
    with run_chat_server(server.respond) as chat:
        server.start(chat)
        chat.routes["/v1/load_lora_adapter"] = lambda body: (404, {"detail": "Not Found"})
        with pytest.raises(EngineError, match=r"load_lora_adapter answers 404 .*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            train_on_server(folder, f"{chat.url}#m", {}, LORA)


def test_name_of_a_version_contains_a_digest_of_its_weights(folder: Path) -> None:
    """A resumed run that has other weights at the same step does not reuse the adapter it wrote before."""
    from earwise.training.rollout.weight_sync import _digest

    zeros, others = {"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 1e-6])}
    assert _digest(zeros) == _digest(dict(zeros)) != _digest(others)


@pytest.mark.parametrize(
    ("server", "method", "family", "message"),
    [
        ("vllm", "lora", "qwen2_audio", "serves no LoRA for qwen2_audio; set weight_sync.method: weights"),
        ("vllm", "lora", "gemma3n", "serves no LoRA for gemma3n"),
        ("", "lora", "qwen25_omni", "leave weight_sync out"),
        ("vllm", "lora", "qwen25_omni", None),
        ("vllm", "weights", "qwen2_audio", None),
        ("earwise", "lora", "qwen2_audio", None),
    ],
)
def test_what_a_server_cannot_take_in_is_said_with_what_works(
    server: str, method: SyncMethod, family: str, message: str | None
) -> None:
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_support(server, method, family, "http://127.0.0.1:8000/v1")


def test_a_server_that_cannot_do_it_is_reported_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sync, "WITHOUT_VLLM_LORA", ("qwen2_audio",))
    sft = {"kind": "sft", "max_steps": 1, "data": {"mixture": [{"manifest": "rows.jsonl"}]}}
    lines: list[str] = []
    with run_chat_server(lambda *_: ServerReply("")) as chat:
        chat.models = [{"id": "m", "owned_by": "vllm"}]
        stages = [sft, STAGE | {"trainable": LORA, "rollout_server": f"{chat.url}#m", "weight_sync": {"steps": 1}}]
        recipe = check_recipe({"recipe": "t", "model": {"name": "qwen2_audio"}, "stages": stages}, "t")
        with pytest.raises(ConfigError, match="vLLM serves no LoRA for qwen2_audio"):
            check_rollout_servers(recipe, lines.append)
    check_rollout_servers(recipe, lines.append)  # the server is away now
    assert len(lines) == 1 and "nothing answers" in lines[0] and lines[0].endswith("before its stage begins")
