"""Reads the JSON body of a request into a bounded spool and parses it outside the event loop.

A few megabytes of `[]` or `{}` become gigabytes of objects, so the number of values is counted in the raw bytes first.
The size of the body and the time that it takes to arrive are bounded by `access_middleware.py`.
"""

import json
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from earwise.serve.errors import ApiError

SPOOL_BYTES = 2**20
"""Part of a body that is kept in memory while it arrives; the rest is in a temporary file."""
MAX_VALUES = 100_000
"""Largest number of commas, colons and opening brackets of a body, those in strings included."""
MAX_DEPTH = 32
"""Deepest nesting of a body."""
MAX_NAME_CHARS = 128
"""Longest name of a field."""


async def read_json(request: Request) -> Any:
    """The JSON body of a request.

    Raises:
        ApiError: if the content type is another, or the body is not valid JSON, has too many values, is nested too
            deeply, or contains names that are too long.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(f"the content-type is {content_type[:60]!r}; it must be application/json", 415)
    with SpooledTemporaryFile(SPOOL_BYTES) as spool:
        async for block in request.stream():
            spool.write(block)
        return await run_in_threadpool(_parse, spool)


def _parse(spool: IO[bytes]) -> Any:
    """Parse a body that has arrived."""
    spool.seek(0)
    data = spool.read()
    num_values = sum(data.count(separator) for separator in (b",", b":", b"[", b"{"))
    if num_values > MAX_VALUES:
        raise ApiError(f"the body has about {num_values:,} values, {MAX_VALUES:,} are allowed; send less")
    try:
        text = data.decode("utf-8-sig")
        del data
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON ({str(error)[:120]})") from error
    _check_values(value)
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_values(body: Any) -> None:
    """Refuse deep nesting, long names, and strings that no encoding can represent (lone surrogates)."""
    level = [body]
    for _ in range(MAX_DEPTH):
        strings = [value for value in level if isinstance(value, str)]
        next_level: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                strings += value
                longest = max(map(len, value), default=0)
                if longest > MAX_NAME_CHARS:
                    raise ApiError(f"a field name has {longest:,} characters, {MAX_NAME_CHARS} are allowed")
                next_level += value.values()
            elif isinstance(value, list):
                next_level += value
        for string in strings:
            _check_encodable(string)
        if not next_level:
            return
        level = next_level
    raise ApiError(f"the body is nested more than {MAX_DEPTH} levels deep; send a flatter one")


def _check_encodable(string: str) -> None:
    if string.isascii():
        return
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise ApiError(f"the body contains an incomplete character ({error.reason}); send whole characters") from error
