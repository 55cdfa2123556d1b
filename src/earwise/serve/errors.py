"""What is refused, as OpenAI's error JSON says it: one line, the offending value, the remedy.

Raised anywhere in `serve`; the routes (`api.py`) turn it, and every other `EarwiseError`, into a response.
"""

from typing import Any

from earwise.errors import EarwiseError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refusal(EarwiseError):
    """A request that is not answered.

    Args:
        message: One line.
        status: Of HTTP.
        param: The field to blame.
        code: A word that programs may look at.
    """

    def __init__(self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def body_of(error: EarwiseError) -> dict[str, Any]:
    """The body of the response, or the last event of a stream."""
    refusal = error if isinstance(error, Refusal) else Refusal(str(error))
    kind = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    message = " ".join(str(refusal).encode(errors="replace").decode().split())
    return {"error": {"message": message, "type": kind, "param": refusal.param, "code": refusal.code}}
