"""Newer weights for a server that samples: a real HTTP server with the model loads what the policy has become."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import tiny_qwen2_audio, write_two_questions
from chat_server import ChatServer, ServerReply, count_usage, run_chat_server, request_clips
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError, EngineError
from earwise.models import lora_checkpoint, registry
from earwise.models.base import load
from earwise.types import Audio, Text, Turn
from policy_server import FULL, HEARS_S, LORA, trained


class Served:
    """What such servers do: one model, adapters by name, whole weights in their place.

    Args:
        kind: "vllm", "sglang" or "earwise" (which loads an adapter in place).
        base: The checkpoint that it was started with.
    """

    def __init__(self, kind: str, base: Path) -> None:
        self.kind, self.base = kind, base
        self.lock = threading.Lock()
        self.engines = {"m": LocalEngine(load("qwen2_audio", base))}
        self.calls: list[tuple[str, str]] = []

    def start(self, chat: ChatServer) -> None:
        self.chat = chat
        self._tell()
        root = "" if self.kind == "sglang" else "/v1"
        chat.routes |= {
            f"{root}/load_lora_adapter": self.load_lora, f"{root}/unload_lora_adapter": self.unload_lora,
        }  # fmt: skip
        if self.kind == "sglang":
            chat.routes["/update_weights_from_disk"] = self.update

    def _tell(self) -> None:
        self.chat.models = [{"id": name, "owned_by": self.kind} for name in self.engines]

    def load_lora(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name, path = body["lora_name"], Path(body["lora_path"])
        self.calls.append(("load", name))
        if (path / lora_checkpoint.PEFT_CONFIG).exists():
            model = load("qwen2_audio", self.base)
            lora_checkpoint.merge(
                model.module, lora_checkpoint.read(path), registry.parameter_names("qwen2_audio"), path
            )
        else:
            model = load(str(path))
        with self.lock:
            self.engines["m" if self.kind == "earwise" else name] = LocalEngine(model)
        self._tell()
        return 200, {"status": f"Success: LoRA adapter '{name}' added successfully."}

    def unload_lora(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.calls.append(("unload", body["lora_name"]))
        del self.engines[body["lora_name"]]
        self._tell()
        return 200, {"status": "Success"}

    def update(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert body["flush_cache"] is True
        self.calls.append(("update", Path(body["model_path"]).name))
        self.engines["m"] = LocalEngine(load("qwen2_audio", Path(body["model_path"])))
        return 200, {"success": True, "message": "Succeeded to update model weights."}

    def answer(self, body: dict[str, Any], count: int) -> ServerReply:
        waveforms = [wave[: HEARS_S * rate] for wave, rate in request_clips(body)]
        turns = []
        for message in body["messages"]:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            told = tuple(Text(part["text"]) if part["type"] == "text" else Audio("a") for part in parts)
            turns.append(Turn(message["role"], told))
        sampling_params = SamplingParams(body["max_tokens"], body["temperature"], seed=body.get("seed", 0))
        with self.lock:
            engine = self.engines[body["model"]]
            said = engine.generate([Prompt(tuple(turns), tuple(waveforms), "k")], sampling_params, body.get("n", 1))[0]
        choices = [
            {
                "message": {"role": "assistant", "content": one.text}, "finish_reason": one.finish_reason,
                "logprobs": {"content": [{"token": "", "logprob": value} for value in one.logprobs]},
                "token_ids": list(one.token_ids),
            }
            for one in said
        ]  # fmt: skip
        return ServerReply(choices=choices, usage=count_usage(body, "a"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base checkpoint and two questions, about sounds that 16 bits hold exactly."""
    tiny_qwen2_audio(4).save(tmp_path / "base")
    write_two_questions(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "how", "trainable"),
    [
        ("vllm", "lora", LORA),
        ("sglang", "lora", LORA),
        ("sglang", "weights", FULL),
        ("earwise", "lora", LORA | {"connector": "full"}),
        ("earwise", "weights", FULL),
    ],
)
def test_after_a_refresh_the_server_says_what_the_policy_says(
    folder: Path, kind: str, how: str, trainable: dict[str, Any]
) -> None:
    server = Served(kind, folder / "base")
    with run_chat_server(server.answer) as chat:
        server.start(chat)
        ratios = trained(folder, f"{chat.url}#m", {"method": how}, trainable)
    assert [abs(ratio - 1) < 1e-4 for ratio in ratios] == [True] * 4, ratios
    names = [name for call, name in server.calls if call != "unload"]
    assert len(set(names)) == 4 and names[1].startswith("m-1-")
    assert len(list((folder / "run" / "stage-0-grpo" / "sampler").iterdir())) == 1, "older versions are deleted"
    if (kind, how) == ("vllm", "lora"):
        assert [name for call, name in server.calls if call == "unload"] == names[:-1]
        assert list(server.engines) == ["m", names[-1]]


def test_without_it_the_two_drift_apart(folder: Path) -> None:
    server = Served("vllm", folder / "base")
    with run_chat_server(server.answer) as chat:
        server.start(chat)
        ratios = trained(folder, f"{chat.url}#m", None, LORA)
    assert abs(ratios[0] - 1) < 1e-4
    assert max(abs(ratio - 1) for ratio in ratios[1:]) > 1e-2, ratios


def test_every_second_step(folder: Path) -> None:
    server = Served("vllm", folder / "base")
    with run_chat_server(server.answer) as chat:
        server.start(chat)
        ratios = trained(folder, f"{chat.url}#m", {"steps": 2}, LORA)
    close = [abs(ratio - 1) < 1e-4 for ratio in ratios]
    assert close == [True, False, True, False], ratios


@pytest.mark.parametrize(
    ("kind", "refresh", "trainable", "said"),
    [
        ("vllm", {"method": "weights"}, FULL, "is for sglang, earwise"),
        ("", {}, LORA, "is unknown"),
        ("vllm", {}, FULL, "there is no LoRA"),
        ("vllm", {}, LORA | {"connector": "full"}, "set trainable.connector: frozen"),
    ],
)
def test_what_a_server_cannot_take_is_refused_before_anything_is_trained(
    folder: Path, kind: str, refresh: dict[str, Any], trainable: dict[str, Any], said: str
) -> None:
    server = Served(kind, folder / "base")
    with run_chat_server(server.answer) as chat:
        server.start(chat)
        with pytest.raises(ConfigError, match=said):
            trained(folder, f"{chat.url}#m", refresh, trainable)


def test_a_server_that_allows_no_updates_stops_the_run_in_one_line(folder: Path) -> None:
    server = Served("vllm", folder / "base")
    with run_chat_server(server.answer) as chat:
        server.start(chat)
        chat.routes["/v1/load_lora_adapter"] = lambda body: (404, {"detail": "Not Found"})
        with pytest.raises(EngineError, match=r"load_lora_adapter answers 404 .*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            trained(folder, f"{chat.url}#m", {}, LORA)


def test_versions_are_named_by_their_weights(folder: Path) -> None:
    """A resumed run that comes to other weights at the same step does not meet its earlier adapter."""
    from earwise.train.rollout.weight_sync import _digest

    one, other = {"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 1e-6])}
    assert _digest(one) == _digest(dict(one)) != _digest(other)
