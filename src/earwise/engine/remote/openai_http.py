"""Requests to an OpenAI-compatible server: connection, rate limits, retries, and the meaning of its error statuses.

Used by everything that sends many requests to such a server: the remote engine (`engine.remote.client`), text teachers
(`datasets.teachers`) and the judge of a reward (`training.rollout.judge`). `post` is one attempt of one request;
`RateLimitedSender` sends many requests under shared limits and retries those that failed temporarily. This module
imports neither torch nor numpy, and httpx only when it is used.
"""

import asyncio
import json
import math
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
BYTES_PER_TOKEN = 4
"""UTF-8 bytes per token, for estimates: English has about 4.2, Japanese about 3 per character."""
CONNECT_TIMEOUT_S = 20.0
MAX_RETRY_AFTER_S = 60.0
"""Longest pause in seconds that a server's `Retry-After` is followed for; the attempts go on after it."""
LONG_PAUSE_S = 5.0
"""Pauses that a server asks for are announced from this length on."""
MIN_REDACTED_KEY = 6
"""Length from which a key is looked for in what a server says: a shorter one may be an ordinary word."""
FATAL_STATUSES = (401, 402, 403, 404)
"""Statuses that every further request would get as well: wrong address, key, quota or model."""
RETRYABLE_STATUSES = (408, 409, 425, 429, 502, 503, 504, 520, 521, 522, 523, 524, 529)
"""Statuses of a busy server, or of a proxy whose server is busy or away."""
SERVER_ERROR_TRIES = 2
"""Attempts of a request that makes the server fail (500 and the like). It fails again unless it was a hiccup."""
MAX_REASON_CHARS = 300
"""Longest part of a server's error message that is repeated."""


@dataclass(frozen=True, slots=True)
class TemporaryFailure:
    """A request that failed for now and may be sent again.

    Attributes:
        reason: What went wrong.
        retry_after_s: Pause in seconds that the server asked for, if it did.
        is_server_error: True if the server failed with this request (status 500), which few further attempts mend.
    """

    reason: str
    retry_after_s: float | None = None
    is_server_error: bool = False


@dataclass(frozen=True, slots=True)
class RejectedRequest:
    """A request that the server will never accept; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How fast requests are sent to a server, and how failures are retried."""

    concurrency: int = 16
    """Largest number of requests in flight."""
    requests_per_minute: float | None = None
    """Largest number of requests per minute; None is unlimited."""
    tokens_per_minute: float | None = None
    """Largest number of prompt and completion tokens per minute; None is unlimited."""
    tries: int = 8
    """Largest number of attempts per request while the server is busy or unreachable."""
    backoff_s: float = 1.0
    """First pause in seconds. It doubles with every attempt; the actual pause is a random 50 to 100 % of it."""
    max_backoff_s: float = 60.0
    """Longest pause in seconds."""
    repairs: int = 2
    """How often a teacher is asked again after an unusable reply."""
    give_up_after: int = 20
    """Number of consecutive failed requests after which a teacher's run ends."""

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
        per_minute: Units per minute; None is unlimited.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._unit_s = 60.0 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    def reserve(self, units: float, now: float) -> float:
        """Reserve the next units.

        Args:
            units: Number of units; a negative number returns units that were not used.
            now: Current time in seconds, of a monotonic clock.
        Returns:
            Seconds to wait before using them.
        """
        start = max(self._free_at, now) if units >= 0 else self._free_at
        self._free_at = start + units * self._unit_s
        return max(0.0, start - now)

    def hold(self, until: float) -> None:
        """Give out nothing before a point in time (seconds of the same clock)."""
        self._free_at = max(self._free_at, until)


class RateLimitedSender(Generic[T]):
    """Sends requests to one server under shared rate limits, and retries temporary failures.

    Args:
        limits: Request rate and retries.
        used_tokens: Number of tokens that a response used, prompt included.
        on_pause: Called with the reason of every pause that the server caused.
        notify: Called with a line about every long pause.
    """

    def __init__(
        self, limits: RequestLimits, used_tokens: Callable[[T], int], on_pause: Callable[[str], None] = lambda _: None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.limits = limits
        self._used_tokens, self._on_pause, self._notify = used_tokens, on_pause, notify
        self._requests, self._tokens = RateLimiter(limits.requests_per_minute), RateLimiter(limits.tokens_per_minute)

    async def send(
        self,
        attempt: Callable[[JsonObject], Awaitable[T | TemporaryFailure | RejectedRequest]],
        body: JsonObject,
        expected_tokens: int,
        rng: random.Random,
        tries: int | None = None,
    ) -> T | TemporaryFailure | RejectedRequest:
        """Send a request, and again after temporary failures.

        Args:
            attempt: Sends the request once.
            body: Body of the request.
            expected_tokens: Estimated number of prompt and completion tokens, for the token limit.
            rng: Source of the random pause lengths.
            tries: Largest number of attempts; None takes that of the limits.
        Returns:
            The response; the rejection; or the last temporary failure once all attempts are used up.
        """
        tries = tries or self.limits.tries
        for number in range(tries):
            now = time.monotonic()
            wait_s = max(self._requests.reserve(1, now), self._tokens.reserve(expected_tokens, now))
            if wait_s:
                await asyncio.sleep(wait_s)
            reply = await attempt(body)
            if not isinstance(reply, TemporaryFailure):
                used_tokens = 0 if isinstance(reply, RejectedRequest) else self._used_tokens(reply)
                self._tokens.reserve(used_tokens - expected_tokens, time.monotonic())
                return reply
            self._tokens.reserve(-expected_tokens, time.monotonic())
            if number + 1 >= (min(tries, SERVER_ERROR_TRIES) if reply.is_server_error else tries):
                break
            pause_s = min(self.limits.max_backoff_s, self.limits.backoff_s * 2**number) * rng.uniform(0.5, 1.0)
            self._on_pause(reply.reason.partition(":")[0])
            if reply.retry_after_s is not None:  # the server means all requests, not only this one
                held_s = min(reply.retry_after_s, MAX_RETRY_AFTER_S)
                pause_s = held_s + pause_s / 10
                self._requests.hold(time.monotonic() + held_s)
                if held_s >= LONG_PAUSE_S:
                    self._notify(
                        f"{reply.reason}: the server asks for a pause of {reply.retry_after_s:g} s; "
                        f"trying again after {held_s:g} s"
                    )
            elif pause_s >= LONG_PAUSE_S:
                self._notify(f"{reply.reason}: trying again after {pause_s:.0f} s")
            await asyncio.sleep(pause_s)
        return reply


@asynccontextmanager
async def connection(url: str, api_key: str | None, timeout_s: float) -> "AsyncIterator[httpx.AsyncClient]":
    """A pool of connections to a server.

    Args:
        url: Base URL up to and including the API version.
        api_key: Sent as a bearer token; None sends none.
        timeout_s: Time limit in seconds for one response.
    """
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
    verify = url.startswith("https")  # reading the certificates takes longer than a local server's response
    async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, verify=verify) as client:
        yield client


async def post(
    client: "httpx.AsyncClient", url: str, body: JsonObject
) -> JsonObject | TemporaryFailure | RejectedRequest:
    """Send one chat completion request, once.

    Args:
        client: Connection pool; see `connection`.
        url: Base URL; `/chat/completions` is appended.
        body: JSON body of the request.
    Returns:
        The response, which has at least one choice with a message, or why there is none.
    Raises:
        EngineError: if the server would refuse every request (address, model, key, quota).
    """
    answer = await post_json(client, f"{url.rstrip('/')}/chat/completions", body)
    if isinstance(answer, TemporaryFailure | RejectedRequest):
        return answer
    try:
        if all(isinstance(choice["message"], Mapping) for choice in answer["choices"]) and answer["choices"]:
            return answer
    except (LookupError, TypeError):
        pass
    return TemporaryFailure("status 200 without a chat completion")


async def post_json(
    client: "httpx.AsyncClient", url: str, body: JsonObject
) -> JsonObject | TemporaryFailure | RejectedRequest:
    """Send one request, once.

    Args:
        client: Connection pool; see `connection`.
        url: Address of the request.
        body: JSON body of the request.
    Returns:
        The response, or why there is none.
    Raises:
        EngineError: if the server would refuse every request (address, model, key, quota).
    """
    import httpx

    try:
        response = await client.post(url, json=body)
    except httpx.TimeoutException:
        return TemporaryFailure("timeout")
    except httpx.TransportError as error:
        return TemporaryFailure(f"connection: {error or type(error).__name__}")
    failure = failure_of(url, response)
    if failure is not None:
        return failure
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    return TemporaryFailure(f"status {response.status_code} without a chat completion")


def failure_of(url: str, response: "httpx.Response") -> TemporaryFailure | RejectedRequest | None:
    """Classify the status of a response; None if the request succeeded.

    Raises:
        EngineError: if the server would refuse every request (address, model, key, quota).
    """
    status, text = response.status_code, without_key(error_text(response.text), sent_key(response))[:MAX_REASON_CHARS]
    if status in FATAL_STATUSES or (status == 429 and "insufficient_quota" in response.text):
        raise EngineError(f"{url} responds with status {status} ({text}); check the address, the model and the key")
    reason = f"status {status}: {text}" if text else f"status {status}"
    if status in RETRYABLE_STATUSES or status >= 500:
        pause_s = retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
        return TemporaryFailure(reason, pause_s, is_server_error=status not in RETRYABLE_STATUSES)
    return RejectedRequest(reason) if status >= 400 else None


def error_text(body: str) -> str:
    """The message in the body of an error response, in one line: OpenAI's form, FastAPI's form, or the text itself.

    >>> error_text('{"error": {"message": "Please install vllm[audio]", "code": 500}}'), error_text("busy\\n")
    ('Please install vllm[audio]', 'busy')
    """
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, Mapping):
        error = content.get("error") or content.get("detail") or content.get("message")
        message = error.get("message") if isinstance(error, Mapping) else error
        body = message if isinstance(message, str) and message.strip() else body
    return " ".join(body.split())


def sent_key(response: "httpx.Response") -> str:
    """The API key that a response's request had, or ""."""
    return response.request.headers.get("authorization", "").partition(" ")[2]


def without_key(text: str, key: str | None) -> str:
    """A server's text without the API key that it was sent, which some servers repeat in their error messages.

    >>> without_key("Incorrect API key provided: sk-12345", "sk-12345")
    'Incorrect API key provided: [API key]'
    """
    return text.replace(key, "[API key]") if key and len(key) >= MIN_REDACTED_KEY else text


def token_usage(answer: JsonObject) -> tuple[int, int] | None:
    """Number of prompt and completion tokens as the server counted them; None if it did not."""
    usage = answer.get("usage") or {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None


def estimate_tokens(value: object) -> int:
    """Estimated number of tokens of a text, or of all texts in a JSON value.

    >>> estimate_tokens("A dog barks twice."), estimate_tokens([{"role": "user", "content": "abcdefgh"}])
    (5, 2)
    """
    if isinstance(value, str):
        return -(-len(value.encode()) // BYTES_PER_TOKEN)
    if isinstance(value, Mapping):
        return sum(estimate_tokens(item) for key, item in value.items() if key != "role")
    return sum(estimate_tokens(item) for item in value) if isinstance(value, list | tuple) else 0


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Pause in seconds that a `Retry-After` header asks for, as a number or as a date; None without a valid header.

    The pause is not bounded here: see `MAX_RETRY_AFTER_S`.

    >>> retry_after_s("7", datetime.now(UTC)), retry_after_s(None, datetime.now(UTC))
    (7.0, None)
    """
    if header is None:
        return None
    try:
        seconds = float(header)
        return None if math.isnan(seconds) else max(0.0, seconds)
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def api_key_from_environment(variable: str) -> str | None:
    """The API key in an environment variable; None if it is not set."""
    return os.environ.get(variable) or None
