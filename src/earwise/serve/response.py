"""Response bodies: a chat completion, the events of a stream, the list of models. Pure.

The last step of answering a request. The format is OpenAI's chat completions; `token_ids` and `prompt_token_ids` are
those of vLLM's `return_token_ids`. `logprobs.content` has one entry for each sampled token, the end token included, so
that training can use it; values are natural logarithms before temperature. The `seed` is always returned, whether the
request gave one or not, so that a completion can be reproduced.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.serve.sampling.stream_text import INCOMPLETE_CHARACTER, TextDelta

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    """What all bodies of one response have in common.

    Attributes:
        id: Identifier of the response.
        created: Seconds since 1970.
        model: Name of the served model.
        revision: Revision of the weights.
        seed: Seed of the sampling.
        prompt_ids: Tokens of the prompt.
        audio_tokens: Number of them that are audio.
        logprobs: Whether log-probabilities are returned.
        return_token_ids: Whether token ids are returned.
        decode_token: Text of one token.
    """

    id: str
    created: int
    model: str
    revision: str
    seed: int
    prompt_ids: Sequence[int]
    audio_tokens: int
    logprobs: bool
    return_token_ids: bool
    decode_token: Callable[[int], str]


def chat_completion(header: ResponseHeader, deltas: Sequence[Sequence[TextDelta]]) -> Body:
    """The body of a response that is not streamed.

    Args:
        header: The common fields.
        deltas: All deltas of each completion, in order.
    """
    choices = []
    for number, sample_deltas in enumerate(deltas):
        joined = _join(number, sample_deltas)
        message = {"role": "assistant", "content": joined.text, "refusal": None}
        choices.append({"index": number, "message": message} | _choice_fields(header, joined))
    return (
        _common_fields(header, "chat.completion")
        | {"choices": choices, "usage": usage(header, deltas)}
        | _prompt_ids(header)
    )


def stream_start(header: ResponseHeader, n: int) -> list[Body]:
    """The first events of a stream, which give the role of each of its `n` completions."""
    delta = {"role": "assistant", "content": ""}
    return [
        _common_fields(header, "chat.completion.chunk") | _prompt_ids(header)
        | {"choices": [{"index": number, "delta": delta, "logprobs": None, "finish_reason": None}]}
        for number in range(n)
    ]  # fmt: skip


def stream_chunk(header: ResponseHeader, delta: TextDelta) -> Body:
    """The event for one delta."""
    content = {"content": delta.text} if delta.text else {}
    choice = {"index": delta.sample, "delta": content} | _choice_fields(header, delta)
    return _common_fields(header, "chat.completion.chunk") | {"choices": [choice]}


def usage_chunk(header: ResponseHeader, deltas: Sequence[Sequence[TextDelta]]) -> Body:
    """The event with the token counts, for `stream_options.include_usage`."""
    return _common_fields(header, "chat.completion.chunk") | {"choices": [], "usage": usage(header, deltas)}


def server_sent_event(body: Mapping[str, Any]) -> str:
    """A server-sent event with a JSON body."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


STREAM_END = "data: [DONE]\n\n"
"""The last event of every stream."""


def usage(header: ResponseHeader, deltas: Sequence[Sequence[TextDelta]]) -> Body:
    """Token counts, end tokens included."""
    prompt = len(header.prompt_ids)
    completion = sum(len(delta.token_ids) for sample_deltas in deltas for delta in sample_deltas)
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"audio_tokens": header.audio_tokens, "cached_tokens": 0},
    }  # fmt: skip


def model_card(name: str, revision: str, created: int, sample_rate: int, max_audio_s: float) -> Body:
    """The entry of the served model in `/v1/models`, with the audio that it accepts."""
    return {
        "id": name, "object": "model", "created": created, "owned_by": "earwise", "root": f"{name}@{revision}",
        "parent": None, "sample_rate": sample_rate, "max_audio_s": max_audio_s,
    }  # fmt: skip


def _common_fields(header: ResponseHeader, object_type: str) -> Body:
    return {
        "id": header.id, "object": object_type, "created": header.created, "model": header.model,
        "system_fingerprint": header.revision, "seed": header.seed,
    }  # fmt: skip


def _prompt_ids(header: ResponseHeader) -> Body:
    return {"prompt_token_ids": list(header.prompt_ids)} if header.return_token_ids else {}


def _choice_fields(header: ResponseHeader, delta: TextDelta) -> Body:
    """The fields of a choice besides its text."""
    fields: Body = {"logprobs": None, "finish_reason": delta.finish}
    if header.logprobs:
        pairs = zip(delta.token_ids, delta.logprobs, strict=True)
        fields["logprobs"] = {"content": [_token_logprob(header, token, logprob) for token, logprob in pairs]}
    if header.return_token_ids:
        fields["token_ids"] = list(delta.token_ids)
    return fields


def _token_logprob(header: ResponseHeader, token: int, logprob: float) -> Body:
    text = header.decode_token(token)
    # A token may be a part of a character, whose bytes are then unknown.
    text_bytes = list(text.encode()) if INCOMPLETE_CHARACTER not in text else None
    return {"token": text, "logprob": logprob, "bytes": text_bytes, "top_logprobs": []}


def _join(sample: int, deltas: Sequence[TextDelta]) -> TextDelta:
    """All deltas of a completion as one."""
    return TextDelta(
        sample,
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        tuple(logprob for delta in deltas for logprob in delta.logprobs),
        deltas[-1].finish,
    )
