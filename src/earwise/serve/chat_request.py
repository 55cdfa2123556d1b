"""Parses a request of `/v1/chat/completions`: conversation, parameters, and where its audio is to be found.

The first step of answering a request; `audio_inputs.py` fetches the audio. Nothing is guessed: a field that would
change the answer and is not supported is refused by name, unless its value asks for what the server does anyway. The
format is OpenAI's chat completions, with vLLM's `top_k`, `return_token_ids` and `audio_url`.

Whatever a client sends, the work here is bounded: messages, parts, clips, fields and stop strings are counted, and the
text is measured in bytes, before anything is decoded or tokenised.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from earwise.serve.errors import ApiError
from earwise.serve.http.limits import ServerLimits
from earwise.types import Audio, Part, Role, Text, Turn

Body = Mapping[str, Any]
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
DEFAULT_ONLY_FIELDS: dict[str, Sequence[Any]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,), "min_tokens": (0,),
    "top_logprobs": (0,), "logit_bias": ({},), "best_of": (1,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "ignore_eos": (False,), "stop_token_ids": ([],), "prompt_logprobs": (),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "skip_special_tokens": (True,),
}  # fmt: skip
"""Unsupported fields, and the values with which they ask for what the server does anyway."""
IGNORED_FIELDS = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "request_id", "priority", "cache_salt",
)  # fmt: skip
"""Fields that change no answer."""
MAX_FIELDS = 64
"""Largest number of fields of a request."""
MAX_PARTS = 256
"""Largest number of parts of a message."""
MAX_STOPS = 16
"""Largest number of stop strings."""
MAX_STOP_CHARS = 256
"""Longest stop string."""
MIN_TEMPERATURE = 1e-3
"""Below this, sampling is greedy: it would be so with near certainty, and much below it, dividing by it overflows."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Where the audio of a message part is.

    Attributes:
        place: Name of the part in error messages, such as `messages[0].content[1]`.
        data: The file in base64, or None.
        url: Its address, or None.
    """

    place: str
    data: str | None = None
    url: str | None = None


class StreamOptions(BaseModel):
    """The field `stream_options`."""

    include_usage: bool = False


class ChatParams(BaseModel):
    """All fields of a request except its messages."""

    model_config = ConfigDict(frozen=True)

    model: str = ""
    """Name of the model; empty means the served one."""
    n: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    """0 and -1 mean all tokens."""
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of `max_tokens`."""
    stop: str | list[str] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: bool = False
    return_token_ids: bool = False


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed request.

    Attributes:
        params: All fields except the messages.
        turns: The conversation.
        audio: Where the audio of each audio part is, in order.
        stop: Strings that end a completion.
        max_tokens: Largest number of tokens of a completion; None if the request does not say.
    """

    params: ChatParams
    turns: tuple[Turn, ...]
    audio: tuple[AudioSource, ...]
    stop: tuple[str, ...]
    max_tokens: int | None


def parse_request(body: object, limits: ServerLimits) -> ChatRequest:
    """Parse the JSON body of a request.

    Args:
        body: The body.
        limits: What a request may ask for; here, the numbers of messages and clips and the length of the text.
    Raises:
        ApiError: naming the field that is missing, wrong, or not supported.
    """
    if not isinstance(body, dict):
        raise ApiError(f"the body is a JSON {type(body).__name__}; it must be an object")
    if len(body) > MAX_FIELDS:
        raise ApiError(f"the body has {len(body):,} fields, {MAX_FIELDS} are allowed; send only those that are needed")
    fields = {name: value for name, value in body.items() if value is not None}
    messages = fields.pop("messages", None)
    _refuse_unsupported(fields)
    try:
        params = ChatParams.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise ApiError(f"{field}: {problem['msg']} ({_shown(problem['input'])!r} was sent)", param=field) from error
    if 0 < params.temperature < MIN_TEMPERATURE:
        params = params.model_copy(update={"temperature": 0.0})
    turns, audio = _parse_messages(messages, limits)
    lengths = [length for length in (params.max_tokens, params.max_completion_tokens) if length is not None]
    return ChatRequest(params, turns, audio, _parse_stop(params.stop), min(lengths) if lengths else None)


def _shown(value: object) -> str:
    """A value of a request in an error message: at most 60 characters, whatever its size."""
    return (value if isinstance(value, str) else _SHORT.repr(value))[:60]


def _parse_stop(stop: str | list[str]) -> tuple[str, ...]:
    """The stop strings, without empty ones; an ApiError if there are too many, or one is too long."""
    strings = tuple(string for string in ([stop] if isinstance(stop, str) else stop) if string)
    if len(strings) > MAX_STOPS:
        raise ApiError(f"stop: {len(strings):,} strings, {MAX_STOPS} are allowed", param="stop")
    longest = max(map(len, strings), default=0)
    if longest > MAX_STOP_CHARS:
        raise ApiError(f"stop: a string of {longest:,} characters, {MAX_STOP_CHARS} are allowed", param="stop")
    return strings


def _refuse_unsupported(fields: Body) -> None:
    """Raise an ApiError for the first field that would change the answer and is not supported."""
    for name, value in fields.items():
        if name in ChatParams.model_fields or name in IGNORED_FIELDS or value in DEFAULT_ONLY_FIELDS.get(name, ()):
            continue
        if name in DEFAULT_ONLY_FIELDS:
            raise ApiError(f"{name}: {_shown(value)!r} is not supported; leave it out", param=name)
        near = get_close_matches(name, [*ChatParams.model_fields, "messages"], 1)
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        raise ApiError(f"unknown field {name[:60]!r}; {hint}", param=name[:60])


def _parse_messages(messages: object, limits: ServerLimits) -> tuple[tuple[Turn, ...], tuple[AudioSource, ...]]:
    """The turns of a conversation, and the sources of their audio parts."""
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages: a list with at least one message is required", param="messages")
    if len(messages) > limits.max_messages:
        raise ApiError(
            f"messages: {len(messages):,} messages, {limits.max_messages} are allowed; send fewer", param="messages"
        )
    turns: list[Turn] = []
    audio: list[AudioSource] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        role_name = message.get("role") if isinstance(message, dict) else message
        if not isinstance(message, dict) or not isinstance(role_name, str) or role_name not in ROLES:
            raise ApiError(f"{place}: role {_shown(role_name)!r} is none of {', '.join(ROLES)}", param="messages")
        role, content = ROLES[role_name], message.get("content")
        # OpenAI's clients send an assistant turn without text, such as a refusal, with null as its content.
        parts, sources = _parse_content("" if content is None and role == "assistant" else content, place)
        if sources and role != "user":
            raise ApiError(f"{place}: only messages of the user may contain audio", param="messages")
        turns.append(Turn(role, parts))
        audio += sources
        if len(audio) > limits.max_clips:
            raise ApiError(
                f"{place}: the {len(audio)} clips up to here are more than the {limits.max_clips} that a request may "
                "hold; send fewer", param="messages",
            )  # fmt: skip
    _check_text_length(turns, limits)
    if turns[-1].role != "user":
        raise ApiError(
            f"messages: the last message has role {turns[-1].role}; end with one of the user", param="messages"
        )
    return tuple(turns), tuple(audio)


def _check_text_length(turns: Sequence[Turn], limits: ServerLimits) -> None:
    """Refuse text that cannot fit into the longest prompt, before it is tokenised."""
    num_bytes = sum(len(part.text.encode()) for turn in turns for part in turn.parts if isinstance(part, Text))
    if num_bytes > limits.max_text_bytes:
        raise ApiError(
            f"messages: {num_bytes:,} bytes of text are more than the {limits.max_text_bytes:,} that fit into this "
            f"server's limit of {limits.max_prompt_tokens} tokens; send less", param="messages",
            code="context_length_exceeded",
        )  # fmt: skip


def _parse_content(content: object, place: str) -> tuple[tuple[Part, ...], list[AudioSource]]:
    """The parts of one message, and the sources of its audio parts."""
    if isinstance(content, str):
        return (_parse_text(content, place),), []
    if not isinstance(content, list) or not content:
        raise ApiError(f"{place}.content: a string or a list of parts is required", param="messages")
    if len(content) > MAX_PARTS:
        raise ApiError(f"{place}.content: {len(content):,} parts, {MAX_PARTS} are allowed", param="messages")
    parts: list[Part] = []
    audio: list[AudioSource] = []
    for number, part in enumerate(content):
        part_place = f"{place}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if isinstance(part, dict) and isinstance(kind, str) else None
        if kind == "text" and isinstance(value, str):
            parts.append(_parse_text(value, part_place))
            continue
        if kind == "input_audio" and isinstance(value, dict) and isinstance(value.get("data"), str):
            data = value["data"]
            is_url = data.startswith("data:")
            audio.append(AudioSource(part_place, url=data) if is_url else AudioSource(part_place, data=data))
        elif kind == "audio_url" and isinstance(value, dict) and isinstance(value.get("url"), str):
            audio.append(AudioSource(part_place, url=value["url"]))
        elif kind == "audio_url" and isinstance(value, str):
            audio.append(AudioSource(part_place, url=value))
        else:
            raise ApiError(
                f"{part_place}: a part of type {_shown(kind)!r} cannot be read; send text, input_audio "
                "({data: base64, format}) or audio_url ({url})", param="messages",
            )  # fmt: skip
        parts.append(Audio(part_place))
    return tuple(parts), audio


def _parse_text(text: str, place: str) -> Text:
    """A text part; an ApiError if the text holds a lone surrogate, which no encoding can represent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(
            f"{place}: the text contains an incomplete character ({error.reason})", param="messages"
        ) from error
    return Text(text)
