"""One request to an OpenAI-compatible server of speech, with patience; what `speech.py` and `asr.py` share.

A name like `http://127.0.0.1:8000/v1?model=tts-1&voice=alloy` says where and what. Busy servers are tried again; a
server that refuses for good ends in an EngineError that names it. No torch; imports httpx when it is used.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from earwise.errors import EngineError

if TYPE_CHECKING:
    import httpx

TRIES = 4
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Server:
    """An address up to and including its version, and the options that its name gave."""

    url: str
    options: Mapping[str, str]
    api_key: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """For rows: the model, which decides what comes out, or else the address."""
        return "/".join(self.options.values()) or self.url


def parse(name: str, api_key: str | None = None) -> Server:
    """The server of a name.

    >>> parse("http://127.0.0.1:8000/v1/?model=tts-1")
    Server(url='http://127.0.0.1:8000/v1', options={'model': 'tts-1'})
    """
    parts = urlsplit(name)
    url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return Server(url, dict(parse_qsl(parts.query)), api_key)


def post(server: Server, path: str, *, pause: Callable[[float], None] = time.sleep, **content: Any) -> "httpx.Response":
    """POST to the server; `content` is what httpx takes (`json`, or `data` and `files`).

    Raises:
        EngineError: if it refuses, or does not answer in four tries.
    """
    import httpx

    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    where, reason = f"{server.url}{path}", ""
    for attempt in range(TRIES):
        if attempt:
            pause(2.0 ** (attempt - 1))
        try:
            response = httpx.post(where, headers=headers, timeout=TIMEOUT_S, **content)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            continue
        if response.status_code < 400:
            return response
        reason = f"status {response.status_code}: {' '.join(response.text.split())[:120]}"
        if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
            break
    raise EngineError(f"{where}: {reason}; check that the server runs and speaks this address")
