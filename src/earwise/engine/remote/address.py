"""What `--model` says of a server: where it is, which model, how sound is sent, how hard it may be worked.

    http://127.0.0.1:8000/v1#Qwen/Qwen2-Audio-7B-Instruct
    https://host/v1?part=audio_url&max_s=60&concurrency=32#name
    remote:gpt-audio?requests_per_minute=60          (address and key from OPENAI_BASE_URL and OPENAI_API_KEY)

Read by `engine/connect.py`. No torch, no numpy.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from earwise.engine.remote.openai_http import RequestLimits
from earwise.errors import ConfigError

Part = Literal["input_audio", "audio_url"]
PARTS: tuple[Part, ...] = ("input_audio", "audio_url")
EXAMPLE = "http://127.0.0.1:8000/v1#NAME"
KEY, OPENAI_KEY, OPENAI_URL = "EARWISE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A model on a server."""

    url: str
    """Up to and including the version."""
    model: str
    """As the server calls it; empty: the only one that it has."""
    api_key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; never written anywhere."""
    part: Part = "input_audio"
    """Form of a sound: OpenAI's, or vLLM's and SGLang's data URL."""
    sample_rate: int = 16000
    """Hz of the WAV files sent."""
    max_audio_s: float = 30.0
    """Longest clip sent, seconds: what the model hears whole is not told over the wire."""
    timeout_s: float = 300.0
    """Of one answer."""
    logprobs: bool | None = None
    """Whether log-probabilities are asked for; None: of servers that are known to give them."""
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError(f"part {self.part!r} is none of {', '.join(PARTS)}")
        for name in ("sample_rate", "max_audio_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")


def is_remote(name: str) -> bool:
    """True if a model's name is the address of a server."""
    return name.startswith(("http://", "https://", "remote:"))


def slug(name: str) -> str:
    """A file name for an address: server and model, without options."""
    address = parse_address(name)
    shown = "-".join(filter(None, (urlsplit(address.url).netloc, address.model)))
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in shown)


def parse_address(name: str, environment: Mapping[str, str] | None = None) -> ServerAddress:
    """The address that a name stands for.

    Raises:
        ConfigError: for an unknown option or a bad value, a key inside the address, or `remote:` without a server.
    """
    environment = os.environ if environment is None else environment
    if name.startswith("remote:"):
        model, _, query = name.removeprefix("remote:").partition("?")
        url, key = environment.get(OPENAI_URL, ""), environment.get(OPENAI_KEY)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"{name}: {OPENAI_URL} is {url!r}; set it to the server's address, for example http://127.0.0.1:8000/v1"
            )
    else:
        try:
            parts = urlsplit(name)
            _ = parts.port  # raises for what is no number
        except ValueError as error:
            raise ConfigError(f"--model {name}: no address ({error}); write for example {EXAMPLE}") from error
        if not parts.hostname:
            raise ConfigError(f"--model {name}: no address; write for example {EXAMPLE}")
        if parts.username or parts.password:
            raise ConfigError(f"{parts.hostname}: the address holds a key, which logs would keep; put it into {KEY}")
        model, _, more = parts.fragment.partition("?")  # options behind the model's name are meant as options, too
        query = "&".join(filter(None, (parts.query, more)))
        url, key = urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), environment.get(KEY)
    given = {option: _value(name, option, text) for option, text in parse_qsl(query, keep_blank_values=True)}
    limited = {option: given.pop(option) for option in list(given) if option in _LIMITS}
    settings = {_NAMES.get(option, option): value for option, value in given.items()}
    return ServerAddress(url.rstrip("/"), model, key or None, limits=RequestLimits(**limited), **settings)


_NAMES = {"rate": "sample_rate", "max_s": "max_audio_s", "timeout": "timeout_s"}
_LIMITS: dict[str, Callable[[str], Any]] = {
    "concurrency": int, "tries": int, "requests_per_minute": float, "tokens_per_minute": float,
}  # fmt: skip
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "part": str, "rate": int, "max_s": float, "timeout": float,
    "logprobs": {"0": False, "1": True}.__getitem__, **_LIMITS,
}  # fmt: skip


def _value(name: str, option: str, text: str) -> Any:
    if option not in _OPTIONS:
        near = get_close_matches(option, _OPTIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(_OPTIONS)}"
        raise ConfigError(f"--model {name}: no option {option!r}; {hint}")
    try:
        return _OPTIONS[option](text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--model {name}: {option}={text!r} is no value for it") from error
