"""A rollout server whose weights can be updated, as those of vLLM and `earwise serve`, with a tiny model."""

import threading
from pathlib import Path
from typing import Any

from chat_server import ChatServer, ServerReply, count_usage
from earwise.engine.local import LocalEngine
from earwise.models import lora_checkpoint, registry
from earwise.models.base import load
from policy_server import completion_choices, sample_completions


class UpdatableServer:
    """A server whose weights can be updated: one model, adapters by name, or all weights in its place.

    Args:
        kind: "vllm" or "earwise" (which loads an adapter in place of its model).
        base: The checkpoint that the server was started with.
    """

    def __init__(self, kind: str, base: Path) -> None:
        self.kind, self.base = kind, base
        self.lock = threading.Lock()
        self.engines = {"m": LocalEngine(load("qwen2_audio", base))}
        self.calls: list[tuple[str, str]] = []

    def start(self, chat: ChatServer) -> None:
        """Add the routes for updates to a chat server."""
        self.chat = chat
        self._list_models()
        chat.routes |= {"/v1/load_lora_adapter": self.load_lora, "/v1/unload_lora_adapter": self.unload_lora}
        if self.kind == "vllm":
            chat.routes["/collective_rpc"] = self.reload_weights
            for cache in ("prefix", "mm", "encoder"):
                chat.routes[f"/reset_{cache}_cache"] = self.reset_cache

    def _list_models(self) -> None:
        self.chat.models = [{"id": name, "owned_by": self.kind} for name in self.engines]

    def load_lora(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name, path = body["lora_name"], Path(body["lora_path"])
        self.calls.append(("load", name))
        if (path / lora_checkpoint.PEFT_CONFIG).exists():
            model = load("qwen2_audio", self.base)
            lora_checkpoint.add_own(
                model.module, lora_checkpoint.read(path), registry.parameter_names("qwen2_audio"), path
            )
        else:
            model = load(str(path))
        with self.lock:
            self.engines["m" if self.kind == "earwise" else name] = LocalEngine(model)
        self._list_models()
        return 200, {"status": f"Success: LoRA adapter '{name}' added successfully."}

    def unload_lora(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.calls.append(("unload", body["lora_name"]))
        del self.engines[body["lora_name"]]
        self._list_models()
        return 200, {"status": "Success"}

    def reload_weights(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert body["method"] == "reload_weights"
        path = Path(body["kwargs"]["weights_path"])
        self.calls.append(("update", path.name))
        self.engines["m"] = LocalEngine(load("qwen2_audio", path))
        return 200, {"results": [None]}

    def reset_cache(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.calls.append(("reset", ""))
        return 200, {"success": True}

    def respond(self, body: dict[str, Any], count: int) -> ServerReply:
        """Answer a chat request with samples of the model it names."""
        with self.lock:
            completions = sample_completions(self.engines[body["model"]], body)
        return ServerReply(choices=completion_choices(completions), usage=count_usage(body, "a"))
