"""`earwise serve`: one model behind OpenAI's API, with a page to talk to it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earwise.commands.loading import model_option, note, open_engine
from earwise.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from earwise.engine.local import LocalEngine

MB = 2**20
LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command("serve", short_help="Serve a model: OpenAI's API, and a page.")
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--name", help="What requests call the model. [default: as --model, of a folder its last part]")
@click.option(
    "--api-key", envvar="EARWISE_API_KEY", metavar="KEY",
    help="Wanted of every request as a bearer token; give it as EARWISE_API_KEY, which no list of processes shows.",
)  # fmt: skip
@click.option(
    "--max-tokens", default=1024, show_default=True, type=click.IntRange(1), help="Longest answer, in tokens."
)
@click.option("--max-prompt-tokens", default=8192, show_default=True, type=click.IntRange(1), help="Longest prompt.")
@click.option(
    "--max-audio-s", default=300.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="All sounds of a request together, seconds; each is held to what the model hears.",
)  # fmt: skip
@click.option("--max-body-mb", default=32.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Largest request.")  # fmt: skip
@click.option("--max-waiting", default=64, show_default=True, type=click.IntRange(1),
              help="Requests in line; one more is refused with 429.")  # fmt: skip
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1),
              help="Samples drawn at once, of all requests of a round.")  # fmt: skip
@click.option("--timeout", default=300.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Seconds from a request's arrival to its end.")  # fmt: skip
@click.option(
    "--allow-files", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="Let requests name files below DIR as file:// addresses.",
)  # fmt: skip
@click.option("--allow-host", multiple=True, metavar="HOST", help="Let requests name http(s) addresses of this host.")
@click.option(
    "--allow-weight-updates", is_flag=True,
    help="Let requests put newer weights in place, from folders of this machine (for training: sampler_refresh).",
)  # fmt: skip
@click.option("--transcribe", is_flag=True, help="Write down speech, too (Whisper base; fetched on the first use).")
@click.option("--seed", default=0, show_default=True, help="Of the seeds of requests that give none.")
def command(
    model: str, host: str, port: int, name: str | None, api_key: str | None, max_tokens: int, max_prompt_tokens: int,
    max_audio_s: float, max_body_mb: float, max_waiting: int, batch: int, timeout: float, allow_files: Path | None,
    allow_host: tuple[str, ...], allow_weight_updates: bool,
    transcribe: bool, seed: int,
) -> None:  # fmt: skip
    """Serve MODEL until Ctrl-C: OpenAI's chat completions with sound at /v1, a page at /.

    \b
    earwise serve
    earwise serve --model runs/first --port 9000
    EARWISE_API_KEY=secret earwise serve --host 0.0.0.0
    earwise ask dog.ogg "What do you hear?" --model http://127.0.0.1:8000/v1

    Requests that come together are sampled together, and what one is told does not depend on the others. See
    docs/serving.md.
    """
    from earwise.config.resolve import require

    for package in ("fastapi", "uvicorn"):
        require(package, "serve", "the routes of a server")
    listening = _listen(host, port)
    engine = open_engine(model)
    import random

    import uvicorn

    from earwise.datasets.xs_cot.speech_recognition import open_recogniser
    from earwise.engine.local import LocalEngine
    from earwise.serve.api import Api, Rules
    from earwise.serve.audio_inputs import Access
    from earwise.serve.batching import Capacity
    from earwise.serve.weight_updates import Weights

    if not isinstance(engine, LocalEngine):
        raise ConfigError(f"--model {model}: is on a server already; name a family or a folder")
    called = name or (Path(model).resolve().name if Path(model).is_dir() else model)
    body_bytes = round(max_body_mb * MB)
    rules = Rules(
        api_key=api_key, access=Access(allow_host, allow_files, body_bytes), max_tokens=max_tokens,
        default_tokens=min(256, max_tokens), max_prompt_tokens=max_prompt_tokens, max_audio_s=max_audio_s,
        max_body_bytes=body_bytes, timeout_s=timeout,
    )  # fmt: skip
    weights = Weights(engine, _family(model)) if allow_weight_updates else None
    capacity = Capacity(samples=batch, waiting=max_waiting)
    recogniser = open_recogniser("whisper", say=note) if transcribe else None
    draws = random.Random(seed)
    app = Api(engine, called, rules, capacity, weights=weights, recogniser=recogniser, draws=draws).app()
    _warm(engine)
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    note(f"{called} ({engine.revision}) at http://{shown}:{address[1]}/v1; a page at http://{shown}:{address[1]}/")
    if api_key is None and address[0] not in LOCAL:
        note(f"whoever reaches {host} may ask: no --api-key was given")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10, server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        note("stopped")


def _listen(host: str, port: int) -> "socket.socket":
    """The socket, taken before the model is loaded.

    Raises:
        ConfigError: if the address is not ours, or the port is taken.
    """
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port}: cannot be listened at ({error.strerror or error}); choose another --port or --host"
        ) from error
    return listening


def _family(model: str) -> str:
    from earwise.models import detect

    return detect.checkpoint(Path(model))[0] if Path(model).is_dir() else model


def _warm(engine: "LocalEngine") -> None:
    """One short answer, so that the first client does not pay for what happens once; a model that cannot answer ends
    the command here."""
    import numpy as np

    from earwise.engine.base import Decoding, Prompt
    from earwise.types import Audio, Text, Turn

    noise = np.random.default_rng(0).normal(0, 0.1, engine.sample_rate).astype(np.float32)
    engine.generate([Prompt((Turn("user", (Audio("noise"), Text("What is it?"))),), (noise,))], Decoding(2))
