"""The log of a remote engine: one JSON row per exchange, in a file that only its owner can read."""

from datetime import UTC, datetime
from pathlib import Path

from earwise.engine.base import Prompt
from earwise.engine.remote import chat_format, openai_http
from earwise.engine.remote.address import ServerAddress
from earwise.engine.remote.openai_http import JsonObject, RejectedRequest, TemporaryFailure
from earwise.files import append_jsonl

NOT_LOGGED = ("messages", "token_ids", "content_parts")
"""Fields of a request that the log has in a form without samples of clips: the prompt."""


def append(
    path: Path, address: ServerAddress, prompt: Prompt, body: JsonObject,
    reply: JsonObject | TemporaryFailure | RejectedRequest, seconds: float,
) -> None:  # fmt: skip
    """Append an exchange. Clips are logged by their hash, API keys never, also where a server repeats its own.

    Args:
        path: The log.
        address: Server and model; its key is looked for in the answers.
        prompt: Prompt of the request.
        body: Body of the request.
        reply: What came back.
        seconds: Time from request to reply.
    """
    row: JsonObject = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "model": address.model,
        "key": prompt.key,
        "prompt": chat_format.loggable(prompt),
        "settings": {name: value for name, value in body.items() if name not in NOT_LOGGED},
        "seconds": round(seconds, 3),
    }
    if isinstance(reply, TemporaryFailure | RejectedRequest):
        row |= {"answers": [], "error": reply.reason}
    else:
        answers = [
            {
                "text": openai_http.without_key(chat_format.text(choice), address.api_key),
                "finish_reason": choice.get("finish_reason"),
            }
            for choice in reply["choices"]
        ]
        row |= {
            "answers": answers,
            "usage": openai_http.token_usage(reply),
            "fingerprint": reply.get("system_fingerprint"),
        }
    append_jsonl(path, row, private=True)
