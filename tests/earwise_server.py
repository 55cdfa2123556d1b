"""The real server of `earwise serve` on a tiny random model, in the test's own process, and a client for it."""

import base64
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from builders import byte_tokenizer, feature_extractor, tiny_hf_model
from earwise.audio import encode_wav
from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.engine.local import LocalEngine
from earwise.models.families.qwen2_audio import Qwen2Audio, from_parts
from earwise.serve.api import Api
from earwise.serve.http.limits import ServerLimits
from earwise.serve.run_server import uvicorn_config
from earwise.serve.sampling.job import Capacity
from earwise.serve.sampling.weight_updates import WeightUpdater
from earwise.types import Waveform

WINDOW_S = 4  # longer than the probe of `engine.connect`
Body = dict[str, Any]


def tiny(seed: int = 0, scale: float = 1.0) -> Qwen2Audio:
    """A tiny random Qwen2-Audio that hears 4 s."""
    module = tiny_hf_model(seed, window_s=WINDOW_S, scale=scale)
    return from_parts(module, byte_tokenizer(), feature_extractor(window_s=WINDOW_S), name="tiny")


@dataclass
class Client:
    """Asks a server; the answer's status and body."""

    root: str
    key: str | None = None

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.root, headers=headers, trust_env=False, timeout=60)

    def get(self, path: str) -> httpx.Response:
        with self.http() as client:
            return client.get(path)

    def post(self, body: object, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        with self.http() as client:
            return client.post(path, json=body, **more)

    def ask(self, *content: str | Waveform, **settings: Any) -> Body:
        """One turn of the user; greedy and 12 tokens if nothing else is said. It has to be answered."""
        response = self.post(body_of(*content, **settings))
        assert response.status_code == 200, response.text
        answer: Body = response.json()
        return answer

    def events(self, body: Body) -> list[Body]:
        """The events of a stream; it has to end as one should."""
        with self.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
        return [json.loads(line[6:]) for line in lines[:-1]]

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"earwise_{name}"))


def part(wave: Waveform, rate: int = 16000) -> Body:
    """A sound as OpenAI's clients send it."""
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(encode_wav(wave, rate)).decode(), "format": "wav"},
    }


def body_of(*content: str | Waveform, **settings: Any) -> Body:
    """A request with one turn of the user."""
    parts = [{"type": "text", "text": one} if isinstance(one, str) else part(one) for one in content]
    return {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 12} | settings


@contextmanager
def running(
    engine: LocalEngine, limits: ServerLimits | None = None, capacity: Capacity | None = None, *, name: str = "m",
    updates: bool = False, recogniser: Recogniser | None = None,
) -> Iterator[Client]:  # fmt: skip
    """Serve until the block ends."""
    weight_updater = WeightUpdater(engine, "qwen2_audio") if updates else None
    api = Api(
        engine, name, limits or ServerLimits(), capacity or Capacity(), weight_updater=weight_updater,
        recogniser=recogniser, seeds=random.Random(0),
    )  # fmt: skip
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn_config(api.app())
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Client(f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
