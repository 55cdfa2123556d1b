"""Starts real servers of other makers, from the environment that `make servers` made."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("EARWISE_SERVERS", REPOSITORY / ".venv-servers"))
"""Virtual environment with vLLM for CPUs and transformers' server."""
START_S = 400.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
VLLM = OFFLINE | {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_SERVER_DEV_MODE": "1",
}
NAME = "tiny"
"""Name of the model on vLLM's server."""


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(command: list[str], port: int, log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run a server until the block ends; it has to answer `/health` first.

    Args:
        command: The server's program in the environment, and its arguments.
        port: Port of the loopback address.
        log: File for what it prints.
        environment: Environment variables beside those of this process.
    Yields:
        Its address up to `/v1`.
    """
    program = ENVIRONMENT / "bin" / command[0]
    if not program.exists():
        pytest.fail(f"{program} is missing: run `make servers`, which makes the environment")
    # The package under test is not for the servers' interpreter.
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    inherited["PATH"] = f"{ENVIRONMENT / 'bin'}{os.pathsep}{inherited['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]], stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=inherited | environment,
        )  # fmt: skip
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a server answers; fail with the end of its log if it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the server did not start (status {process.poll()}):\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def running_vllm(model: Path, *options: str) -> Iterator[str]:
    """vLLM on a CPU in float32, with the model named `NAME`.

    Args:
        model: Checkpoint.
        options: Further options of `vllm serve`.
    Yields:
        The model's address as `--model` takes it.
    """
    port = free_port()
    command = ["vllm", "serve", str(model), "--served-model-name", NAME, "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port), *options]
    with running_server(command, port, model.with_suffix(".log"), VLLM) as url:
        yield f"{url}#{NAME}"


@contextmanager
def running_transformers(model: Path) -> Iterator[str]:
    """transformers' own server on a CPU in float32; see `running_vllm`."""
    port = free_port()
    command = ["transformers", "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command += ["--dtype", "float32", str(model)]
    cache = model.with_suffix(".cache")
    cache.mkdir()
    environment = OFFLINE | {"HF_HUB_CACHE": str(cache)}
    with running_server(command, port, model.with_suffix(".log"), environment) as url:
        yield f"{url}#{model}"
