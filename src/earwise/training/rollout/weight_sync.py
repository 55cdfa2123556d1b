"""Newer weights for a rollout server: written into a folder that it can read, and loaded by a request.

Used by GRPO with `weight_sync`, before a rollout. Without it the server keeps the weights it was started with, and the
importance ratios have more and more to correct. Two methods:

- `lora`: the LoRA in PEFT's format, by `POST /v1/load_lora_adapter`. Every version has a name of its own, under which
  completions are then requested, and the version before is unloaded. With one name for all versions, vLLM would reuse
  cached prefixes of older weights and read the adapter again at every step (its issues 42125 and 31326).
- `weights`: all weights, LoRA merged. vLLM reads them by `reload_weights` (its `/collective_rpc`, in development mode);
  afterwards everything that it computed with older weights is dropped. `earwise serve` accepts them at the address for
  adapters.

Source: vLLM 0.32, `entrypoints/serve/lora`, `entrypoints/serve/dev`, `model_executor/model_loader/reload`. Its transfer
between GPUs (`/init_weight_transfer_engine`) needs NCCL or CUDA and a trainer inside vLLM, and is not used.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from earwise.engine.base import Engine
from earwise.engine.remote import openai_http
from earwise.engine.remote.client import RemoteEngine, run_coroutine
from earwise.errors import ConfigError, EngineError, ServerUnavailable
from earwise.files import atomic_folder
from earwise.models import lora_checkpoint, registry
from earwise.models.base import AudioLM
from earwise.models.lora_checkpoint import PeftAdapter
from earwise.training.distributed import parallel
from earwise.training.distributed.sharding import full_state

SyncMethod = Literal["lora", "weights"]
SUPPORTED_SERVERS = ("vllm", "earwise")
"""Kinds of servers whose weights can be updated, by `owned_by` in their list of models."""
WITHOUT_VLLM_LORA = ("qwen2_audio", "gemma3n")
"""Families whose LoRA vLLM 0.32 cannot serve; it refuses to start with --enable-lora for them."""
RESET_CACHES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
"""What vLLM drops after new weights: keys and values of prompts, and encoder states of clips."""
START_OPTIONS = {
    ("vllm", "lora"): "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank R",
    ("vllm", "weights"): "start vLLM with VLLM_SERVER_DEV_MODE=1",
    ("earwise", "lora"): "start earwise serve with --allow-weight-updates",
    ("earwise", "weights"): "start earwise serve with --allow-weight-updates",
}
"""Kind of server and method -> how it has to be started."""
ACCEPT_FULL_PARAMETERS = ("earwise",)
"""Kinds of servers whose adapters may hold fully trained parameters beside LoRA."""


class WeightSync:
    """Sends the policy's weights to the server that samples from it.

    Args:
        engine: The server.
        model: The policy, prepared for training.
        method: `lora` or `weights`; see the module.
        interval: Optimizer steps between two versions. The first version is sent before the first rollout of every
            process, so that unsuitable settings end the run at once and a resumed run samples from its own weights.
        folder: Folder for the versions, which this machine and the server both see.
    Raises:
        ConfigError: if this kind of server cannot load what the stage trains.
    """

    def __init__(self, engine: Engine, model: AudioLM, method: SyncMethod, interval: int, folder: Path) -> None:
        if not isinstance(engine, RemoteEngine):
            raise ConfigError("weight_sync is for a server that samples; set rollout_server, or leave it out")
        self._engine, self._model, self._method = engine, model, method
        self._interval, self._folder = interval, folder.resolve()
        self._base_name = engine.address.model
        self._last_step: int | None = None
        self._loaded_name: str | None = None
        self._check(engine)

    def _check(self, engine: RemoteEngine) -> None:
        """Refuse combinations of server, method and trained parameters that cannot work."""
        method, server = self._method, engine.kind
        check_support(server, method, registry.family_of_model(self._model.name), engine.address.url)
        adapter = lora_checkpoint.from_module(self._model.module, self._model.name)
        if method == "lora" and not adapter.matrices:
            raise ConfigError("weight_sync.method: lora, but there is no LoRA; set trainable.decoder: lora")
        if method == "lora" and adapter.full_parameters and server not in ACCEPT_FULL_PARAMETERS:
            raise ConfigError(
                f"weight_sync.method: lora, but {len(adapter.full_parameters)} tensors are trained in full "
                f"({min(adapter.full_parameters)}), which {server} takes in no adapter; set trainable.connector: "
                "frozen, or weight_sync.method: weights"
            )
        if method == "weights" and parallel.world_size() > 1 and parallel.launcher_engine() != "ddp":
            raise ConfigError(f"weight_sync.method: weights does not go with {parallel.launcher_engine()}; use lora")

    def before_rollout(self, step: int) -> bool:
        """Send the weights before the rollout of a step (from 0), if it is time; all processes must call.

        Returns:
            Whether they were sent.
        Raises:
            EngineError: if the server refuses, or does not answer (`ServerUnavailable`).
        """
        if self._last_step is not None and step - self._last_step < self._interval:
            return False
        local = lora_checkpoint.from_module(self._model.module, self._model.name)
        adapter = PeftAdapter(full_state(dict(local.matrices)), full_state(dict(local.full_parameters)), local.base)
        result: str | EngineError = ""
        if parallel.is_main_process():
            try:
                result = self._send(step, adapter)
            except EngineError as error:  # first sent to the other processes, which wait for the result
                result = error
        result = parallel.all_gather(result)[0]
        if isinstance(result, EngineError):
            raise result
        self._engine.address = replace(self._engine.address, model=result)
        self._last_step = step
        return True

    def _send(self, step: int, adapter: PeftAdapter) -> str:
        """Write a version and have the server load it; returns the model name under which to request completions."""
        name = f"{self._base_name.rpartition('/')[2]}-{step}-{_digest({**adapter.matrices, **adapter.full_parameters})}"
        version = self._folder / name
        if not version.exists():
            self._write(version, adapter)
        model_name = self._base_name
        if self._method == "weights" and self._engine.kind == "vllm":
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(version)}}
            self._post("/collective_rpc", body, below_v1=False)
            for cache in RESET_CACHES:
                self._post(cache, {}, below_v1=False)
        else:
            self._post("/load_lora_adapter", {"lora_name": name, "lora_path": str(version)})
            # A server that loads the version in place of its weights does not list it as a model.
            model_name = name if name in self._model_names() else self._base_name
            if self._loaded_name not in (None, name) and model_name == name:
                self._post("/unload_lora_adapter", {"lora_name": self._loaded_name})
        for path in self._folder.iterdir():
            if path != version:
                shutil.rmtree(path, ignore_errors=True)
        self._loaded_name = name
        return model_name

    def _write(self, version: Path, adapter: PeftAdapter) -> None:
        """Write a version into a folder."""
        with atomic_folder(version) as unfinished:
            if self._method == "lora":
                names = registry.parameter_names(registry.family_of_model(self._model.name))
                lora_checkpoint.write(unfinished, lora_checkpoint.rename_parameters(adapter, names))
            else:
                self._model.save(unfinished)

    def _post(self, path: str, body: Mapping[str, Any], *, below_v1: bool = True) -> None:
        """Send a request to the server, under its `/v1` address or beside it."""
        address = self._engine.address
        url = address.url if below_v1 else address.url.removesuffix("/v1")

        async def post() -> None:
            async with openai_http.connection(url, address.api_key, address.timeout_s) as client:
                response = await client.post(f"{url}{path}", json=dict(body))
                _check_response(f"{url}{path}", response, START_OPTIONS[self._engine.kind, self._method])

        self._run(post)

    def _model_names(self) -> list[str]:
        """Models that the server lists."""
        address = self._engine.address

        async def get() -> list[str]:
            async with openai_http.connection(address.url, address.api_key, address.timeout_s) as client:
                response = await client.get(f"{address.url}/models")
                _check_response(f"{address.url}/models", response, "is the server still there?")
                return [str(card["id"]) for card in response.json()["data"]]

        names: list[str] = self._run(get)
        return names

    def _run(self, request: Any) -> Any:
        """Run a request; a server that cannot be reached is `ServerUnavailable`."""
        import httpx

        try:
            return run_coroutine(request())
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnavailable(f"{self._engine.address.url}: nothing answers ({reason})") from error


def check_support(server: str, method: SyncMethod, family: str, url: str) -> None:
    """Refuse an update of weights that a server cannot take in.

    Args:
        server: Kind of the server, by `owned_by` in its list of models; "" if it does not say.
        method: `lora` or `weights`.
        family: Family of the policy.
        url: Address of the server, for the message.
    Raises:
        ConfigError: naming what works instead.
    """
    if server not in SUPPORTED_SERVERS:
        raise ConfigError(
            f"weight_sync is for {' and '.join(SUPPORTED_SERVERS)}; {url} is {server or 'unknown'}; leave weight_sync "
            "out, or serve the model with one of them"
        )
    if (server, method) == ("vllm", "lora") and family in WITHOUT_VLLM_LORA:
        raise ConfigError(
            f"weight_sync.method: lora, but vLLM serves no LoRA for {family}; set weight_sync.method: weights (and "
            f"{START_OPTIONS['vllm', 'weights']}), or use earwise serve"
        )


def _check_response(url: str, response: Any, remedy: str) -> None:
    """Accept only responses that report success.

    Args:
        url: Address of the request, for the message.
        response: The response.
        remedy: How the server has to be started.
    Raises:
        EngineError: with the server's message and the remedy.
    """
    message = openai_http.error_text(response.text)[: openai_http.MAX_REASON_CHARS]
    if response.status_code == 200 and '"success":false' not in message.replace(" ", ""):
        return
    if "already been loaded" in message:  # the name contains a hash of the weights, so they are the same
        return
    raise EngineError(f"{url} answers {response.status_code} ({message}); {remedy}")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits that identify weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
