"""Requests to an OpenAI-compatible server of speech, for `text_to_speech.py` and `speech_recognition.py`.

A name such as `http://127.0.0.1:8000/v1?model=tts-1&voice=alloy` gives the address and the options. A busy server is
tried again; one that rejects the request raises EngineError. No torch; httpx is imported with the first request.
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
BUSY_STATUS = (408, 409, 425, 429)
"""Client error codes that are worth another try, like all server errors."""


@dataclass(frozen=True, slots=True)
class SpeechServer:
    """A server and the options of its requests."""

    url: str
    """Address up to and including the version."""
    options: Mapping[str, str]
    """Options from the query of the name, such as `model` and `voice`."""
    api_key: str | None = field(default=None, repr=False)
    """Bearer token; None sends none."""

    @property
    def name(self) -> str:
        """Name for rows: the options, which decide the result, else the address."""
        return "/".join(self.options.values()) or self.url


def parse_server(name: str, api_key: str | None = None) -> SpeechServer:
    """Parse the name of a server into its address and options.

    Example:
        >>> parse_server("http://127.0.0.1:8000/v1/?model=tts-1")
        SpeechServer(url='http://127.0.0.1:8000/v1', options={'model': 'tts-1'})
    """
    parts = urlsplit(name)
    url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return SpeechServer(url, dict(parse_qsl(parts.query)), api_key)


def post(
    server: SpeechServer, path: str, *, sleep: Callable[[float], None] = time.sleep, **content: Any
) -> "httpx.Response":
    """Send a POST request.

    Args:
        server: The server.
        path: Path behind the server's address.
        sleep: Called with the length of every pause, in seconds.
        **content: Body of the request, as httpx takes it: `json`, or `data` and `files`.
    Raises:
        EngineError: if the server rejects the request, or stays busy or unreachable for all tries.
    """
    import httpx

    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    url, reason = f"{server.url}{path}", ""
    for attempt in range(TRIES):
        if attempt:
            sleep(2.0 ** (attempt - 1))
        try:
            response = httpx.post(url, headers=headers, timeout=TIMEOUT_S, **content)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            continue
        if response.status_code < 400:
            return response
        reason = f"status {response.status_code}: {' '.join(response.text.split())[:120]}"
        if response.status_code not in BUSY_STATUS and response.status_code < 500:
            break
    raise EngineError(f"{url}: {reason}; check that the server runs and speaks this address")
