"""Server addresses as they are given to `--model`: URL, model name, form of the audio parts, and request limits.

    http://127.0.0.1:8000/v1#Qwen/Qwen2-Audio-7B-Instruct
    https://host/v1?part=audio_url&max_s=60&concurrency=32#name
    remote:gpt-audio?requests_per_minute=60          (URL and key from OPENAI_BASE_URL and OPENAI_API_KEY)

`engine.remote.probe` opens an engine for an address. This module imports neither torch nor numpy.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from earwise.engine.remote.openai_http import RequestLimits
from earwise.errors import ConfigError

AudioPart = Literal["input_audio", "audio_url"]
AUDIO_PARTS: tuple[AudioPart, ...] = ("input_audio", "audio_url")
EXAMPLE = "http://127.0.0.1:8000/v1#NAME"
KEY_VARIABLE = "EARWISE_API_KEY"
OPENAI_KEY_VARIABLE, OPENAI_URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A model on a server, and how requests are sent to it."""

    url: str
    """Base URL up to and including the API version, for example `http://127.0.0.1:8000/v1`."""
    model: str
    """Name of the model on the server; "" if the server has only one."""
    api_key: str | None = field(default=None, repr=False)
    """Key sent as a bearer token; it is never written to a file."""
    part: AudioPart = "input_audio"
    """Type of an audio message part: `input_audio` (OpenAI), or `audio_url` with a data URL (vLLM)."""
    sample_rate: int = 16000
    """Sample rate in Hz of the WAV files that are sent."""
    max_audio_s: float = 30.0
    """Longest clip in seconds that is sent. The protocol does not tell how much audio the model accepts."""
    timeout_s: float = 300.0
    """Time limit in seconds for one response."""
    logprobs: bool | None = None
    """Whether to request log-probabilities; None requests them from servers that are known to return them."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    """Concurrency, request rate and retries."""

    def __post_init__(self) -> None:
        if self.part not in AUDIO_PARTS:
            raise ConfigError(f"part is {self.part!r}; it must be one of {', '.join(AUDIO_PARTS)}")
        for name in ("sample_rate", "max_audio_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")


def is_remote(name: str) -> bool:
    """True if a model name is the address of a server."""
    return name.startswith(("http://", "https://", "remote:"))


def slug(name: str) -> str:
    """A file name for an address: server and model, without options."""
    address = parse_address(name)
    server_and_model = "-".join(filter(None, (urlsplit(address.url).netloc, address.model)))
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in server_and_model)


def parse_address(name: str, environment: Mapping[str, str] | None = None) -> ServerAddress:
    """Parse the address of a server.

    Args:
        name: An address as shown in the module's docstring.
        environment: Environment variables to read the API key and, for `remote:`, the URL from; None reads the
            process's own.
    Raises:
        ConfigError: if an option is unknown or has a bad value, if the URL contains a key, or if `remote:` is used
            without a URL in the environment.
    """
    environment = os.environ if environment is None else environment
    if name.startswith("remote:"):
        model, _, query = name.removeprefix("remote:").partition("?")
        url, key = environment.get(OPENAI_URL_VARIABLE, ""), environment.get(OPENAI_KEY_VARIABLE)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"{name}: {OPENAI_URL_VARIABLE} is {url!r}; set it to the server's address, "
                "for example http://127.0.0.1:8000/v1"
            )
    else:
        try:
            parts = urlsplit(name)
            _ = parts.port  # raises ValueError if the port is not a number
        except ValueError as error:
            raise ConfigError(f"--model {name}: not an address ({error}); write for example {EXAMPLE}") from error
        if not parts.hostname:
            raise ConfigError(f"--model {name}: not an address; write for example {EXAMPLE}")
        if parts.username or parts.password:
            raise ConfigError(
                f"{parts.hostname}: the address contains a key, which logs would store; set {KEY_VARIABLE} instead"
            )
        model, _, options_after_model = parts.fragment.partition("?")  # accepted there as well
        query = "&".join(filter(None, (parts.query, options_after_model)))
        url, key = urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), environment.get(KEY_VARIABLE)
    options = {option: _option_value(name, option, text) for option, text in parse_qsl(query, keep_blank_values=True)}
    limits = {option: options.pop(option) for option in list(options) if option in _LIMIT_OPTIONS}
    fields = {_FIELD_NAMES.get(option, option): value for option, value in options.items()}
    return ServerAddress(url.rstrip("/"), model, key or None, limits=RequestLimits(**limits), **fields)


_FIELD_NAMES = {"rate": "sample_rate", "max_s": "max_audio_s", "timeout": "timeout_s"}
_LIMIT_OPTIONS: dict[str, Callable[[str], Any]] = {
    "concurrency": int, "tries": int, "requests_per_minute": float, "tokens_per_minute": float,
}  # fmt: skip
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "part": str, "rate": int, "max_s": float, "timeout": float,
    "logprobs": {"0": False, "1": True}.__getitem__, **_LIMIT_OPTIONS,
}  # fmt: skip


def _option_value(name: str, option: str, text: str) -> Any:
    """The value of one option of an address."""
    if option not in _OPTIONS:
        close = get_close_matches(option, _OPTIONS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(_OPTIONS)}"
        raise ConfigError(f"--model {name}: unknown option {option!r}; {hint}")
    try:
        return _OPTIONS[option](text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--model {name}: {option}={text!r} is not a valid value") from error
