"""A connection whose headers must arrive in time and stay small, around uvicorn's own protocol.

uvicorn bounds neither, so that a client could keep connections open with half a header, or fill the memory with one.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from earwise.serve.http.limits import HEADER_TIMEOUT_S, MAX_HEADER_BYTES

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedConnection(asyncio.Protocol):
    """Hands the events of a connection to uvicorn's protocol, and closes it if a request's headers take too long.

    uvicorn makes one for each connection; the arguments are those of its own protocol.
    """

    def __init__(self, **arguments: Any) -> None:
        self._inner = HttpToolsProtocol(**arguments)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(self._transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._inner.data_received(data)
        if self._in_request():
            self._stop_timer()
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._close(_TOO_LARGE)
        elif self._timer is None:
            self._start_timer()

    def eof_received(self) -> None:
        """The client will send no more."""
        self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop_timer()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than the server writes."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._inner.resume_writing()

    def _in_request(self) -> bool:
        """Whether the headers of a request have arrived and it is not answered yet."""
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEADER_TIMEOUT_S, self._close, _TOO_SLOW)

    def _stop_timer(self) -> None:
        self._header_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, response: bytes) -> None:
        """Close the connection; a client that has begun a request is told why."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._in_request():
            return
        if self._header_bytes and self._inner.cycle is None:
            transport.write(response)
        transport.close()
