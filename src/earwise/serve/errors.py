"""Errors of the API, in the form of OpenAI's error JSON: one line with the offending value and the remedy.

An `ApiError` may be raised anywhere in `serve`; the routes (`api.py`) turn it, and every other `EarwiseError`, into a
response.
"""

from typing import Any

from earwise.errors import EarwiseError

MAX_MESSAGE_CHARS = 600
"""Longest message of an error: what a client sent is never repeated in full."""
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(EarwiseError):
    """A request that the server refuses or cannot answer.

    Args:
        message: One line for the user.
        status: HTTP status.
        param: The field of the request that is wrong.
        code: A word that client programs may test for.
    """

    def __init__(self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_body(error: EarwiseError) -> dict[str, Any]:
    """The JSON body for an error, as a response or as the last event of a stream."""
    api_error = error if isinstance(error, ApiError) else ApiError(str(error))
    error_type = _TYPES.get(api_error.status, "invalid_request_error" if api_error.status < 500 else "server_error")
    message = " ".join(str(api_error).encode(errors="replace").decode().split())[:MAX_MESSAGE_CHARS]
    return {"error": {"message": message, "type": error_type, "param": api_error.param, "code": api_error.code}}
