"""Newer weights for a server that samples: written into a folder that it sees, and the server told to load them.

Before a rollout of a GRPO stage with `sampler_refresh`. Without it the server keeps what it was started with, and
importance ratios have more and more to make up for. Two ways:

- `lora`: the adapter as PEFT writes it, to `POST /v1/load_lora_adapter` (vLLM, earwise) or `/load_lora_adapter`
  (SGLang). Every version has a name of its own, which is then the model that is asked for; the version before is
  unloaded. Under one name vLLM would reuse prefixes that older weights have computed, and read the adapter anew at
  every step (its issues 42125 and 31326).
- `weights`: all of them, LoRA merged in, to SGLang's `POST /update_weights_from_disk`; `earwise serve` takes them where
  it takes an adapter.

Sources: the servers' own documentation and code, as of autumn 2026.
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
from earwise.errors import ConfigError, EngineError, ServerAway
from earwise.files import building
from earwise.models import lora_checkpoint
from earwise.models.base import AudioLM
from earwise.models.lora_checkpoint import Adapter
from earwise.train.distributed import parallel
from earwise.train.distributed.sharding import whole

How = Literal["lora", "weights"]
KINDS: dict[How, tuple[str, ...]] = {"lora": ("vllm", "sglang", "earwise"), "weights": ("sglang", "earwise")}
"""Makes of servers (as they name themselves in their list of models) that take it."""
CONNECTOR_TOO = ("earwise",)
"""Makes that take parameters trained in full beside LoRA."""


class Refresh:
    """Sends the policy to the server that samples from it.

    Args:
        engine: The server.
        model: The policy, prepared for training.
        how: See above.
        every: Optimizer steps between two versions; the first goes before the first rollout of every process, so that
            what cannot work stops a run where it starts, and a resumed run samples from its own weights.
        folder: Where versions are written, as this machine and the server both see it.
    Raises:
        ConfigError: if this make of server cannot take what this stage trains.
    """

    def __init__(self, engine: Engine, model: AudioLM, how: How, every: int, folder: Path) -> None:
        if not isinstance(engine, RemoteEngine):
            raise ConfigError("sampler_refresh is for a server that samples; set sampler, or leave it out")
        self._engine, self._model, self._how, self._every, self._folder = engine, model, how, every, folder.resolve()
        self._base = engine.address.model
        self._last: int | None = None
        self._name: str | None = None
        kind = engine.kind
        if kind not in KINDS[how]:
            raise ConfigError(
                f"sampler_refresh.how: {how} is for {', '.join(KINDS[how])}; "
                f"{engine.address.url} is {kind or 'unknown'}"
            )
        changes = lora_checkpoint.trained(model.module, model.name)
        if how == "lora" and not changes.matrices:
            raise ConfigError("sampler_refresh.how: lora, but there is no LoRA; set trainable.decoder: lora")
        if how == "lora" and changes.whole and kind not in CONNECTOR_TOO:
            raise ConfigError(
                f"sampler_refresh.how: lora, but {len(changes.whole)} tensors are trained in full "
                f"({min(changes.whole)}), which {kind} takes in no adapter; set trainable.connector: frozen"
            )
        if how == "weights" and parallel.world() > 1 and parallel.engine() != "ddp":
            raise ConfigError(f"sampler_refresh.how: weights does not go with {parallel.engine()}; use lora")

    def before(self, step: int) -> bool:
        """Bring the server up to date before the rollout of a step (from 0), if it is time; all processes call.

        Returns:
            Whether it was.
        Raises:
            EngineError: if the server refuses, or does not answer (`ServerAway`).
        """
        if self._last is not None and step - self._last < self._every:
            return False
        found = lora_checkpoint.trained(self._model.module, self._model.name)
        changes = Adapter(whole(dict(found.matrices)), whole(dict(found.whole)), found.base)
        told: str | EngineError = ""
        if parallel.main():
            try:
                told = self._send(step, changes)
            except EngineError as error:  # the others wait to be told
                told = error
        told = parallel.gather(told)[0]
        if isinstance(told, EngineError):
            raise told
        self._engine.address = replace(self._engine.address, model=told)
        self._last = step
        return True

    def _send(self, step: int, changes: Adapter) -> str:
        """Write a version and have it loaded; the name to ask for."""
        name = f"{self._base.rpartition('/')[2]}-{step}-{_digest({**changes.matrices, **changes.whole})}"
        place = self._folder / name
        if not place.exists():
            with building(place) as part:
                if self._how == "lora":
                    names = lora_checkpoint.PUBLISHED.get(self._family(), ())
                    lora_checkpoint.write(part, lora_checkpoint.renamed(changes, names))
                else:
                    self._model.save(part)
        if self._how == "weights" and self._engine.kind == "sglang":
            self._post("/update_weights_from_disk", {"model_path": str(place), "flush_cache": True}, root=True)
            asked = self._base
        else:
            root = self._engine.kind == "sglang"
            self._post("/load_lora_adapter", {"lora_name": name, "lora_path": str(place)}, root=root)
            asked = name if name in self._models() else self._base  # a server may load it in place
            if self._name not in (None, name) and asked == name:
                self._post("/unload_lora_adapter", {"lora_name": self._name}, root=root)
        for old in self._folder.iterdir():
            if old != place:
                shutil.rmtree(old, ignore_errors=True)
        self._name = name
        return asked

    def _family(self) -> str:
        """Key of `PUBLISHED`: a model's name is its family, with what it was loaded from behind it."""
        return next((family for family in lora_checkpoint.PUBLISHED if self._model.name.startswith(family)), "")

    def _post(self, path: str, body: Mapping[str, Any], *, root: bool) -> None:
        address = self._engine.address
        url = address.url.removesuffix("/v1") if root else address.url

        async def send() -> None:
            async with openai_http.connection(url, address.api_key, address.timeout_s) as client:
                _check(f"{url}{path}", await client.post(f"{url}{path}", json=dict(body)))

        self._reach(send)

    def _models(self) -> list[str]:
        address = self._engine.address

        async def ask() -> list[str]:
            async with openai_http.connection(address.url, address.api_key, address.timeout_s) as client:
                response = await client.get(f"{address.url}/models")
                _check(f"{address.url}/models", response)
                return [str(card["id"]) for card in response.json()["data"]]

        found: list[str] = self._reach(ask)
        return found

    def _reach(self, ask: Any) -> Any:
        import httpx

        try:
            return run_coroutine(ask())
        except httpx.TransportError as error:
            said = error or type(error).__name__
            raise ServerAway(f"{self._engine.address.url}: nothing answers ({said})") from error


def _check(url: str, response: Any) -> None:
    """Refuse anything but success.

    Raises:
        EngineError: with what the server says, and what it must be started with.
    """
    said = " ".join(response.text.split())[:200]
    if response.status_code == 200 and '"success":false' not in said.replace(" ", ""):
        return
    if "already been loaded" in said:  # the same name holds the same weights
        return
    raise EngineError(
        f"{url} says {response.status_code} ({said}); start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and "
        "--enable-lora --max-lora-rank R, SGLang with --enable-lora, earwise serve with --allow-weight-updates"
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits that name these weights."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:8]
