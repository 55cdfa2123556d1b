"""The way to an OpenAI-compatible server: its address, its pace, its pauses, and what its refusals mean.

Below everyone who asks such a server many things at once: the engine for remote models (`engine/remote.py`) and the
runner for teachers of text (`build/llm.py`). One request is `post`; `Line` sends many through one pace, tries again
when the server is busy, and says at once when it is never going to answer. No torch, no numpy; httpx when it is used.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from earwise.errors import ConfigError, EngineError

if TYPE_CHECKING:
    import httpx

JsonObject = dict[str, Any]
T = TypeVar("T")
CHARS_PER_TOKEN = 4  # of UTF-8 bytes: English about 4.2, Japanese about 3 a character
CONNECT_S = 20.0
WRONG_DOOR = (401, 402, 403, 404)
BUSY = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True)
class TemporaryFailure:
    """No answer now: worth another try."""

    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class RejectedRequest:
    """This request is never going to be accepted."""

    reason: str


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How hard a server may be worked."""

    concurrency: int = 16
    """Requests under way at once."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Of prompts and answers together."""
    tries: int = 8
    """Attempts at a request that meets a busy or absent server."""
    backoff_s: float = 1.0
    """First pause; doubles with every try, drawn between half and all of it."""
    max_backoff_s: float = 60.0
    repairs: int = 2
    """Times that a teacher's unusable answer is asked for again."""
    give_up_after: int = 20
    """End a teacher's run when so many requests in a row could not be asked or were rejected."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "tries", "give_up_after"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")


class RateLimiter:
    """Spaces events evenly, so that no minute holds more than the limit (plus the one that begins it).

    Args:
        per_minute: Units a minute; None: as fast as one likes.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._unit_s = 60.0 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    def reserve(self, units: float, now: float) -> float:
        """Take a place for `units`; returns the seconds to wait for it. Negative units give some back."""
        start = max(self._free_at, now) if units >= 0 else self._free_at
        self._free_at = start + units * self._unit_s
        return max(0.0, start - now)

    def hold(self, until: float) -> None:
        """Nothing more before `until`."""
        self._free_at = max(self._free_at, until)


class RateLimitedSender(Generic[T]):
    """The way to a server that all requests share: its pace, its pauses, its tries.

    Args:
        limits: Pace and patience.
        used: Tokens that an answer took, prompt included.
        on_pause: Told the reason of every pause because of the server.
    """

    def __init__(
        self, limits: RequestLimits, used: Callable[[T], int], on_pause: Callable[[str], None] = lambda _: None
    ) -> None:
        self.limits = limits
        self._used, self._on_pause = used, on_pause
        self._requests, self._tokens = RateLimiter(limits.requests_per_minute), RateLimiter(limits.tokens_per_minute)

    async def send(
        self,
        ask: Callable[[JsonObject], Awaitable[T | TemporaryFailure | RejectedRequest]],
        body: JsonObject,
        expected: int,
        rng: random.Random,
        tries: int | None = None,
    ) -> T | TemporaryFailure | RejectedRequest:
        """Ask until there is an answer.

        Args:
            ask: One attempt.
            body: What is asked.
            expected: Tokens that it will take, prompt and answer, for the pace.
            rng: Draws the length of pauses.
            tries: Attempts at most; None takes the limits'.
        """
        tries = tries or self.limits.tries
        for attempt in range(tries):
            now = time.monotonic()
            wait = max(self._requests.reserve(1, now), self._tokens.reserve(expected, now))
            if wait:
                await asyncio.sleep(wait)
            reply = await ask(body)
            if not isinstance(reply, TemporaryFailure):
                used = 0 if isinstance(reply, RejectedRequest) else self._used(reply)
                self._tokens.reserve(used - expected, time.monotonic())
                return reply
            self._tokens.reserve(-expected, time.monotonic())
            if attempt + 1 == tries:
                break
            self._on_pause(reply.reason.partition(":")[0])
            pause = min(self.limits.max_backoff_s, self.limits.backoff_s * 2**attempt) * rng.uniform(0.5, 1.0)
            if reply.retry_after_s is not None:  # the server speaks for all requests, not for this one
                pause = reply.retry_after_s + pause / 10
                self._requests.hold(time.monotonic() + reply.retry_after_s)
            await asyncio.sleep(pause)
        return reply


@asynccontextmanager
async def connection(url: str, api_key: str | None, timeout_s: float) -> "AsyncIterator[httpx.AsyncClient]":
    """A pool of connections to a server; the key goes as a bearer token.

    Args:
        url: Up to and including the version.
        api_key: None sends none.
        timeout_s: Of one answer.
    """
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
    verify = url.startswith("https")  # reading the certificates costs more than a local server's answer
    async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, verify=verify) as client:
        yield client


async def post(
    client: "httpx.AsyncClient", url: str, body: JsonObject
) -> JsonObject | TemporaryFailure | RejectedRequest:
    """One attempt at `url/chat/completions`: the answer, which has at least one choice with a message; or why not.

    Raises:
        EngineError: if the server refuses everything (address, model, key, quota).
    """
    import httpx

    try:
        response = await client.post(f"{url.rstrip('/')}/chat/completions", json=body)
    except httpx.TimeoutException:
        return TemporaryFailure("timeout")
    except httpx.TransportError as error:
        return TemporaryFailure(f"connection: {error or type(error).__name__}")
    refused = refusal(url, response)
    if refused is not None:
        return refused
    try:
        answer: JsonObject = response.json()
        if all(isinstance(choice["message"], Mapping) for choice in answer["choices"]) and answer["choices"]:
            return answer
    except (ValueError, LookupError, TypeError):
        pass
    return TemporaryFailure(f"status {response.status_code} without a chat completion")


def refusal(url: str, response: "httpx.Response") -> TemporaryFailure | RejectedRequest | None:
    """What a status says; None where it says that all is well.

    Raises:
        EngineError: if the server refuses everything (address, model, key, quota).
    """
    status, about = response.status_code, " ".join(response.text.split())[:200]
    if status in WRONG_DOOR or (status == 429 and "insufficient_quota" in response.text):
        raise EngineError(f"{url} says {status} ({about}); check the address, the model and the key")
    if status in BUSY or status >= 500:
        return TemporaryFailure(
            f"status {status}", retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
        )
    return RejectedRequest(f"status {status}: {about}") if status >= 400 else None


def token_usage(answer: JsonObject) -> tuple[int, int] | None:
    """Tokens of prompt and answer as the server counted them; None where it did not."""
    counts = answer.get("usage") or {}
    found = counts.get("prompt_tokens"), counts.get("completion_tokens")
    return (found[0], found[1]) if isinstance(found[0], int) and isinstance(found[1], int) else None


def estimate_tokens(value: object) -> int:
    """About how many tokens a text (or the texts of a JSON value) has.

    >>> tokens_in("A dog barks twice."), tokens_in([{"role": "user", "content": "abcdefgh"}])
    (5, 2)
    """
    if isinstance(value, str):
        return -(-len(value.encode()) // CHARS_PER_TOKEN)
    if isinstance(value, Mapping):
        return sum(estimate_tokens(part) for key, part in value.items() if key != "role")
    return sum(estimate_tokens(part) for part in value) if isinstance(value, list | tuple) else 0


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number, or a date.

    >>> retry_after_s("7", datetime.now(UTC)), retry_after_s(None, datetime.now(UTC))
    (7.0, None)
    """
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def api_key_from_environment(variable: str) -> str | None:
    """An API key from the environment; None if the variable is not set."""
    return os.environ.get(variable) or None
