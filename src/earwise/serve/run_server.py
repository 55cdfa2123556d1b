"""Runs the HTTP server of one model until Ctrl-C: takes the socket, builds the application, answers a first prompt.

`earwise serve` calls `open_socket` before it loads the model, so that a port in use is reported at once, and then
`run_server`.
"""

import logging
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import uvicorn
from fastapi import FastAPI

from earwise.datasets.xs_cot.speech_recognition import open_recogniser
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError
from earwise.models.encoder_cache import EncoderCache
from earwise.serve.api import Api
from earwise.serve.http.connection import BoundedConnection
from earwise.serve.http.limits import MAX_CONNECTIONS, MB, ServerLimits
from earwise.serve.sampling.job import Capacity
from earwise.serve.sampling.weight_updates import WeightUpdater
from earwise.types import Audio, Text, Turn

LOCAL_ADDRESSES = ("127.0.0.1", "localhost", "::1")
WARM_UP_TOKENS, WARM_UP_SAMPLES = 12, 8
"""Enough for the engine to pack its weights for several completions at once."""
ENCODER_CACHE_MB = 128
"""Memory for the encoder states of clips that may be sent again."""
BATCHES_MB = 1024
"""Memory for the keys and values of all running batches, unless a single request needs more."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of a server."""

    name: str
    """Name of the model in requests."""
    limits: ServerLimits
    """Limits and permissions of requests."""
    capacity: Capacity
    """Size of a batch, and number of requests that may wait."""
    weight_updates_family: str | None = None
    """Family of the model, if requests may put newer weights in place; None refuses such requests."""
    transcribe: bool = False
    """Also serve transcription, by Whisper base."""
    access_log: bool = True
    """Write one line per request to stderr."""
    seed: int = 0
    """Seed of the seeds of requests that give none."""


def open_socket(host: str, port: int) -> socket.socket:
    """Bind the socket of the server.

    Args:
        host: Name or address to listen on.
        port: Port; 0 takes a free one.
    Raises:
        ConfigError: if the address is not one of this machine, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server_socket = socket.socket(family, kind, protocol)
        server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server_socket.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port}: cannot be listened at ({error.strerror or error}); choose another --port or --host"
        ) from error
    return server_socket


def run_server(
    engine: LocalEngine, server_socket: socket.socket, config: ServerConfig, notify: Callable[[str], None]
) -> None:
    """Serve a model until Ctrl-C.

    Args:
        engine: The engine of the model; nothing else may use it from now on.
        server_socket: Socket from `open_socket`.
        config: Settings of the server.
        notify: Called with the address once the server answers.
    Raises:
        EngineError: if the model cannot answer a prompt.
    """
    family = config.weight_updates_family
    weight_updater = WeightUpdater(engine, family) if family is not None else None
    recogniser = open_recogniser("whisper", notify=notify) if config.transcribe else None
    engine.encoder_cache = EncoderCache(engine.model, max_mb=ENCODER_CACHE_MB)
    _warm_up(engine)
    capacity = replace(config.capacity, max_cache_tokens=BATCHES_MB * MB // max(engine.cache_bytes_per_token, 1))
    application = Api(
        engine, config.name, config.limits, capacity, weight_updater=weight_updater, recogniser=recogniser,
        seeds=random.Random(config.seed),
    ).app()  # fmt: skip
    if config.access_log:
        _log_to_stderr()
    server_socket.listen()  # before the address is announced, so that no client is refused meanwhile
    host, port = server_socket.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    notify(f"{config.name} ({engine.revision}) at {url}/v1; a page at {url}/")
    if config.limits.api_key is None and host not in LOCAL_ADDRESSES:
        notify(f"everyone who reaches {host} may send requests: no --api-key was given")
    try:
        uvicorn.Server(uvicorn_config(application)).run(sockets=[server_socket])
    except KeyboardInterrupt:
        notify("stopped")


def uvicorn_config(application: FastAPI) -> uvicorn.Config:
    """How uvicorn runs the application: connections are bounded in number, and their headers in time and size."""
    return uvicorn.Config(
        application, http=BoundedConnection, log_level="error", access_log=False, server_header=False,
        limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=10,
    )  # fmt: skip


def _log_to_stderr() -> None:
    """Write the access log to stderr, a line per request."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    access_log = logging.getLogger("earwise.access")
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False


def _warm_up(engine: LocalEngine) -> None:
    """Answer one short prompt several times, so that the first request does not wait for what happens only once, the
    memory that decoding needs is taken before the server answers (packed weights, on a CPU), and a model that cannot
    answer ends the command before it serves."""
    noise = np.random.default_rng(0).normal(0, 0.1, engine.sample_rate).astype(np.float32)
    turn = Turn("user", (Audio("noise"), Text("What is it?")))
    engine.generate([Prompt((turn,), (noise,))], SamplingParams(WARM_UP_TOKENS, temperature=1.0), WARM_UP_SAMPLES)
