"""What goes back over the wire: a chat completion, the events of a stream, the list of models. Pure.

Last step of an answer. Form: OpenAI's reference of chat completions; `token_ids` and `prompt_token_ids` as vLLM gives
them under `return_token_ids`. One entry of `logprobs.content` for each sampled id, the end token included, so that
training may learn from it; natural logarithms, before temperature. The `seed` is told, drawn or given, so that an
answer can be had again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.serve.stream_text import HALF, Piece

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What all answers to one request have in common.

    Attributes:
        id: Of the request.
        created: Seconds since 1970.
        model: As it is served.
        revision: Of the weights.
        seed: Of the draws.
        prompt_ids: Tokens of the prompt.
        audio_tokens: How many of them are sound.
        logprobs: Whether they were asked for.
        ids: Whether token ids were asked for.
        token: Text of one id.
    """

    id: str
    created: int
    model: str
    revision: str
    seed: int
    prompt_ids: Sequence[int]
    audio_tokens: int
    logprobs: bool
    ids: bool
    token: Callable[[int], str]


def whole(head: Head, pieces: Sequence[Sequence[Piece]]) -> Body:
    """The answer to a request that is no stream.

    Args:
        head: See `Head`.
        pieces: Of every sample, in order.
    """
    choices = []
    for number, said in enumerate(pieces):
        joined = _joined(number, said)
        message = {"role": "assistant", "content": joined.text, "refusal": None}
        choices.append({"index": number, "message": message} | _rest(head, joined))
    more: Body = {"prompt_token_ids": list(head.prompt_ids)} if head.ids else {}
    return _frame(head, "chat.completion") | {"choices": choices, "usage": usage(head, pieces)} | more


def opening(head: Head, n: int) -> list[Body]:
    """The first events of a stream: who speaks in each of its samples."""
    more: Body = {"prompt_token_ids": list(head.prompt_ids)} if head.ids else {}
    delta = {"role": "assistant", "content": ""}
    return [
        _frame(head, "chat.completion.chunk") | more
        | {"choices": [{"index": number, "delta": delta, "logprobs": None, "finish_reason": None}]}
        for number in range(n)
    ]  # fmt: skip


def chunk(head: Head, piece: Piece) -> Body:
    """The event of one piece."""
    choice = {"index": piece.sample, "delta": {"content": piece.text} if piece.text else {}} | _rest(head, piece)
    return _frame(head, "chat.completion.chunk") | {"choices": [choice]}


def closing(head: Head, pieces: Sequence[Sequence[Piece]]) -> Body:
    """The event with the counts, if they were asked for (`stream_options.include_usage`)."""
    return _frame(head, "chat.completion.chunk") | {"choices": [], "usage": usage(head, pieces)}


def event(body: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"


def usage(head: Head, pieces: Sequence[Sequence[Piece]]) -> Body:
    """Tokens, the end tokens among them."""
    prompt, said = len(head.prompt_ids), sum(len(piece.token_ids) for sample in pieces for piece in sample)
    return {
        "prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said,
        "prompt_tokens_details": {"audio_tokens": head.audio_tokens, "cached_tokens": 0},
    }  # fmt: skip


def card(name: str, revision: str, started: int, rate: int, clip_s: float) -> Body:
    """The served model in `/v1/models`: make, weights, and what it hears."""
    return {
        "id": name, "object": "model", "created": started, "owned_by": "earwise", "root": f"{name}@{revision}",
        "parent": None, "sample_rate": rate, "max_audio_s": clip_s,
    }  # fmt: skip


def _frame(head: Head, kind: str) -> Body:
    return {
        "id": head.id, "object": kind, "created": head.created, "model": head.model,
        "system_fingerprint": head.revision, "seed": head.seed,
    }  # fmt: skip


def _rest(head: Head, piece: Piece) -> Body:
    """A choice but for its words."""
    told: Body = {"logprobs": None, "finish_reason": piece.finish}
    if head.logprobs:
        told["logprobs"] = {
            "content": [_logprob(head, *one) for one in zip(piece.token_ids, piece.logprobs, strict=True)]
        }
    if head.ids:
        told["token_ids"] = list(piece.token_ids)
    return told


def _logprob(head: Head, token: int, value: float) -> Body:
    text = head.token(token)
    known = list(text.encode()) if HALF not in text else None  # a token may be part of a character
    return {"token": text, "logprob": value, "bytes": known, "top_logprobs": []}


def _joined(number: int, said: Sequence[Piece]) -> Piece:
    return Piece(
        number,
        "".join(piece.text for piece in said),
        tuple(token for piece in said for token in piece.token_ids),
        tuple(value for piece in said for value in piece.logprobs),
        said[-1].finish,
    )
