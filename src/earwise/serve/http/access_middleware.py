"""The outermost layer of the application: who may ask, how much a body may hold and how long it may take, and the log.

Every request passes through it before a route sees it. It refuses names that are not the server's own (a page of
another site can give its own name this machine's address: DNS rebinding) and forms and scripts of other sites; bounds
the size, the time and the number of arriving bodies; gives each request an id; turns an exception that no route expects
into an error response; and writes the access log.
"""

import asyncio
import ipaddress
import json
import logging
import re
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from earwise.serve.errors import ApiError, error_body
from earwise.serve.http.limits import MAX_UPLOADS, MB, SMALL_BODY_BYTES, ServerLimits

LOG = logging.getLogger("earwise.serve")
ACCESS_LOG = logging.getLogger("earwise.access")
DRAIN_S = 2.0
"""Longest time that the rest of a refused body is read for, in seconds, so that the client sees the response instead of
a reset."""
CLIENT_DISCONNECTED = 499
READ_METHODS = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTROL_OR_SPACE = re.compile(r"[\x00-\x20\x7f-\x9f]")


@dataclass(slots=True)
class _RequestState:
    """One request on its way through the guard.

    Attributes:
        id: The request's id.
        started: Time of arrival (`time.monotonic`).
        received: Bytes of the body so far.
        body_done: Whether the body has arrived completely.
        disconnected: Whether the client has left.
        holds_upload: Whether it counts among the arriving bodies.
        status: Status of the response; 0 before it starts.
    """

    id: str
    started: float = field(default_factory=time.monotonic)
    received: int = 0
    body_done: bool = False
    disconnected: bool = False
    holds_upload: bool = False
    status: int = 0


class RequestGuard:
    """ASGI middleware; see the module's docstring.

    Args:
        app: The application behind it.
        limits: What a client may send.
    """

    def __init__(self, app: ASGIApp, limits: ServerLimits) -> None:
        self._app, self._limits = app, limits
        self._names = {"localhost", socket.gethostname().lower(), *map(str.lower, limits.trusted_hosts)}
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; other events pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given_id = headers.get("x-request-id", "")
        state = _RequestState(given_id if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex)

        async def guarded_receive() -> Message:
            return await self._receive(receive, state)

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._end_upload(state)
                if not state.body_done and "expect" not in headers:
                    await _drain(receive, state, 2 * self._limits.max_body_bytes)
                state.status = message["status"]
                extra = [(b"x-request-id", state.id.encode())]
                if not state.body_done:
                    extra.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            self._admit(scope, headers, state)
            await self._app(scope, guarded_receive, guarded_send)
        except ApiError as error:
            await _send_error(guarded_send, state, error)
        except Exception as error:  # a fault of ours: the client gets a response all the same
            LOG.exception("request %s failed", state.id)
            await _send_error(guarded_send, state, ApiError(f"internal error: {type(error).__name__}: {error}", 500))
        finally:
            self._end_upload(state)
            _log_access(scope, state)

    def _admit(self, scope: Scope, headers: Mapping[str, str], state: _RequestState) -> None:
        """Refuse a request by its headers.

        Raises:
            ApiError: if it addresses another host, comes from another site, or its body is too large or one too many.
        """
        host = _host_name(headers.get("host", ""))
        limits = self._limits
        if (limits.api_key is None or limits.trusted_hosts) and not self._is_own_name(host):
            raise ApiError(
                f"the Host header names {host[:80]!r}, which is no name of this server; "
                "start it with --trusted-host NAME",
                403,
            )
        origin = headers.get("origin")
        if scope["method"] not in READ_METHODS and origin is not None and not self._is_own_origin(origin, headers):
            raise ApiError(f"requests from pages of other sites ({origin[:80]!r}) are refused", 403)
        length = headers.get("content-length", "")
        chunked = "transfer-encoding" in headers
        state.body_done = not chunked and length in ("", "0")
        if length.isdecimal() and int(length[:20]) > limits.max_body_bytes:
            raise self._too_large()
        if not state.body_done and (chunked or int(length[:20] or 0) > SMALL_BODY_BYTES):
            if self._uploads >= MAX_UPLOADS:
                raise ApiError("too many requests are being received; try again later", 503)
            self._uploads, state.holds_upload = self._uploads + 1, True

    def _is_own_name(self, host: str) -> bool:
        """Whether a host name cannot be one that another site gave to this machine's address."""
        if not host or host in self._names or host.endswith(".localhost") or "*" in self._names:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _is_own_origin(self, origin: str, headers: Mapping[str, str]) -> bool:
        """Whether a page that sends a request came from this server, by whatever name it is reached."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        trusted = {name.lower() for name in self._limits.trusted_hosts}
        return parts.netloc.lower() == headers.get("host", "").lower() or (parts.hostname or "") in trusted

    async def _receive(self, receive: Receive, state: _RequestState) -> Message:
        """The next message of a request, with its body's size and time bounded.

        Raises:
            ApiError: if the body is too large or too slow, or the client leaves in the middle of it.
        """
        if state.body_done:
            return await receive()
        remaining_s = state.started + self._limits.upload_timeout_s - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(remaining_s, 0.001))
        except TimeoutError as error:
            raise ApiError(
                f"the body did not arrive within {self._limits.upload_timeout_s:g} s; send less, or start the server "
                "with a larger --upload-timeout",
                408,
                code="timeout",
            ) from error
        _note_received(message, state)
        if state.disconnected:
            raise ApiError("the client disconnected", CLIENT_DISCONNECTED)
        if state.received > self._limits.max_body_bytes:
            raise self._too_large()
        if state.body_done:
            self._end_upload(state)
        return message

    def _too_large(self) -> ApiError:
        return ApiError(
            f"the body is larger than {self._limits.max_body_bytes / MB:g} MB; send fewer or shorter clips", 413
        )

    def _end_upload(self, state: _RequestState) -> None:
        if state.holds_upload:
            self._uploads, state.holds_upload = self._uploads - 1, False


def _note_received(message: Message, state: _RequestState) -> None:
    """Keep account of a message of the body."""
    if message["type"] == "http.disconnect":
        state.disconnected = state.body_done = True
        return
    state.received += len(message.get("body", b""))
    state.body_done = not message.get("more_body", False)


async def _drain(receive: Receive, state: _RequestState, max_bytes: int) -> None:
    """Read and drop the rest of a body, within bounds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while not state.body_done and state.received <= max_bytes:
                _note_received(await receive(), state)


async def _send_error(send: Send, state: _RequestState, error: ApiError) -> None:
    """Send an error response, unless a response has begun or the client has left."""
    if state.status or state.disconnected:
        state.status = state.status or error.status
        return
    body = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", b"1")] if error.status in (429, 503) else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _host_name(header: str) -> str:
    """The host of a `Host` header, without its port.

    >>> _host_name("LocalHost:8000"), _host_name("[::1]:80"), _host_name("a.example.")
    ('localhost', '::1', 'a.example')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].strip().rstrip(".").lower()


def _log_access(scope: Scope, state: _RequestState) -> None:
    """Write one line: address, method, path (without its query), status, bytes received, seconds, id."""
    client = scope.get("client") or ("-", 0)
    path = _CONTROL_OR_SPACE.sub("?", scope["path"])[:200]
    seconds = time.monotonic() - state.started
    status = CLIENT_DISCONNECTED if state.disconnected and not state.status else state.status
    ACCESS_LOG.info(
        "%s %s %s %d %d bytes %.3f s %s", client[0], scope["method"], path, status, state.received, seconds, state.id
    )
