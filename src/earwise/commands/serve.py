"""`earwise serve`: one model behind OpenAI's API, with a page to talk to it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import channel_option, compute_option, model_option, note, open_engine
from earwise.commands.options import collect_options
from earwise.commands.paths import UserPath
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.serve.run_server import ServerConfig

KEY_VARIABLE = "EARWISE_API_KEY"
DEFAULT_TOKENS = 256
"""Longest answer of a request that names no limit, unless --max-tokens is lower."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of `earwise serve`."""

    model: str
    host: str
    port: int
    name: str | None
    api_key: str | None
    trusted_host: tuple[str, ...]
    max_tokens: int
    max_prompt_tokens: int
    max_request_mb: float | None
    max_audio_s: float
    max_messages: int
    max_clips: int
    max_body_mb: float
    max_waiting: int
    batch: int
    upload_timeout: float
    timeout: float
    channel: str
    compute: str
    access_log: bool
    allow_files: Path | None
    allow_host: tuple[str, ...]
    allow_weight_updates: bool
    transcribe: bool
    seed: int


@click.command("serve", short_help="Serve a model: OpenAI's API, and a page.")
@model_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; 0.0.0.0 is every address of the machine.",
)
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--name", help="Name of the model in requests. [default: --model, or the last part of a folder's path]")
@click.option(
    "--api-key", envvar=KEY_VARIABLE, metavar="KEY",
    help="Bearer token that every request must have; set EARWISE_API_KEY to keep it out of the list of processes.",
)  # fmt: skip
@click.option(
    "--max-tokens", default=1024, show_default=True, type=click.IntRange(1), help="Longest answer, in tokens."
)
@click.option("--max-prompt-tokens", default=4096, show_default=True, type=click.IntRange(1),
              help="Longest prompt; its text may have 8 bytes per token.")  # fmt: skip
@click.option(
    "--max-request-mb", type=click.FloatRange(0, min_open=True),
    help="Memory for the keys and values of a request, prompt and n completions. "
    "[default: 240, or what the longest prompt and answer need]",
)  # fmt: skip
@click.option(
    "--max-audio-s", default=300.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="All audio of a request together, in seconds; each clip is also limited by what the model accepts.",
)  # fmt: skip
@click.option("--max-messages", default=256, show_default=True, type=click.IntRange(1), help="Messages of a request.")
@click.option("--max-clips", default=32, show_default=True, type=click.IntRange(1), help="Clips of a request.")
@click.option("--max-body-mb", default=16.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Largest request.")  # fmt: skip
@click.option("--max-waiting", default=64, show_default=True, type=click.IntRange(1),
              help="Requests that may wait; further ones are refused with status 429.")  # fmt: skip
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1),
              help="Completions sampled at once, over all requests.")  # fmt: skip
@click.option("--upload-timeout", default=30.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Longest time for the body of a request to arrive, in seconds.")  # fmt: skip
@click.option("--timeout", default=300.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Longest time for a request from arrival to end, in seconds.")  # fmt: skip
@channel_option
@compute_option
@click.option("--access-log/--no-access-log", default=True, show_default=True,
              help="Write a line per request to stderr.")  # fmt: skip
@click.option(
    "--trusted-host", multiple=True, metavar="NAME",
    help="A name by which the server is addressed, besides localhost, this machine's name and addresses; * is any. May "
    "be given several times; without it, a server with a key does not look at names.",
)  # fmt: skip
@click.option(
    "--allow-files", type=UserPath(exists=True, file_okay=False), metavar="DIR",
    help="Let requests refer to files below DIR as file:// addresses.",
)  # fmt: skip
@click.option(
    "--allow-host",
    multiple=True,
    metavar="HOST",
    help="Let requests refer to http(s) addresses of this host; may be given several times.",
)
@click.option(
    "--allow-weight-updates", is_flag=True,
    help="Let requests put newer weights in place, from folders of this machine (for training with weight_sync).",
)  # fmt: skip
@click.option("--transcribe", is_flag=True, help="Also transcribe speech (Whisper base; fetched on the first use).")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Requests without a seed get one drawn from a generator with this seed.",
)
def command(**values: Any) -> None:
    """Serve MODEL until Ctrl-C: OpenAI's chat completions with audio at /v1, a page at /.

    \b
    earwise serve
    earwise serve --model runs/first --port 9000
    EARWISE_API_KEY=secret earwise serve --host 0.0.0.0
    earwise ask dog.ogg "What do you hear?" --model http://127.0.0.1:8000/v1

    Requests that arrive together are sampled together; an answer does not depend on the other requests. See
    docs/reference/server.md.
    """
    from earwise.config.resolve import require

    options = collect_options(ServeOptions, values)
    if (options.api_key is not None and not options.api_key.strip()) or os.environ.get(KEY_VARIABLE) == "":
        raise ConfigError(
            f"--api-key (or {KEY_VARIABLE}) is empty, which would let everyone in; give a key, or leave it out"
        )
    for package in ("fastapi", "uvicorn", "httptools"):
        require(package, "serve", "the routes of a server")
    from earwise.engine.local import LocalEngine
    from earwise.serve.run_server import open_socket, run_server

    server_socket = open_socket(options.host, options.port)
    engine = open_engine(options.model, options.compute, keep_weights=options.allow_weight_updates)
    if not isinstance(engine, LocalEngine):
        raise ConfigError(f"--model {options.model}: is on a server already; name a family or a folder")
    run_server(engine, server_socket, _server_config(options), note)


def _server_config(options: ServeOptions) -> "ServerConfig":
    """The settings of the server that the options ask for."""
    from earwise.models import detect
    from earwise.serve.http.limits import MB, AudioAccess, ServerLimits
    from earwise.serve.run_server import ServerConfig
    from earwise.serve.sampling.job import Capacity

    folder = Path(options.model)
    family = detect.family_of(options.model)
    body_bytes = round(options.max_body_mb * MB)
    limits = ServerLimits(
        api_key=options.api_key,
        trusted_hosts=options.trusted_host,
        access=AudioAccess(options.allow_host, options.allow_files, body_bytes),
        max_tokens=options.max_tokens,
        default_tokens=min(DEFAULT_TOKENS, options.max_tokens),
        max_prompt_tokens=options.max_prompt_tokens,
        max_request_mb=options.max_request_mb,
        max_audio_s=options.max_audio_s,
        max_messages=options.max_messages,
        max_clips=options.max_clips,
        max_body_bytes=body_bytes,
        channel="first" if options.channel == "first" else "mean",
        upload_timeout_s=options.upload_timeout,
        timeout_s=options.timeout,
    )
    return ServerConfig(
        name=options.name or (folder.resolve().name if folder.is_dir() else options.model),
        limits=limits,
        capacity=Capacity(max_samples=options.batch, max_waiting=options.max_waiting),
        weight_updates_family=family if options.allow_weight_updates else None,
        transcribe=options.transcribe,
        access_log=options.access_log,
        seed=options.seed,
    )
