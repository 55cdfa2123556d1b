"""A request of `/v1/chat/completions`, read: what is asked, with which settings, and where its sounds are to be found.

First step of an answer; `sounds.py` fetches the sounds. Nothing is guessed: a field that would change the answer and is
not supported is refused by name, unless it says what is done anyway. Form: OpenAI's reference of chat completions, with
vLLM's `top_k`, `return_token_ids` and `audio_url`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from earwise.serve.errors import Refusal
from earwise.types import Audio, Part, Role, Text, Turn

Body = Mapping[str, Any]
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Not supported: taken only where it says what happens without it.
NEUTRAL: dict[str, Sequence[Any]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,), "min_tokens": (0,),
    "top_logprobs": (0,), "logit_bias": ({},), "best_of": (1,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "ignore_eos": (False,), "stop_token_ids": ([],), "prompt_logprobs": (),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "skip_special_tokens": (True,),
}  # fmt: skip
# Changes no answer.
IDLE = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "request_id", "priority", "cache_salt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sound:
    """Where a sound is: `data` in base64, or a `url`; `where` names the part in errors."""

    where: str
    data: str | None = None
    url: str | None = None


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool = False


class Settings(BaseModel):
    """All of a request but its messages."""

    model_config = ConfigDict(frozen=True)

    model: str = ""
    """Empty: the one that is served."""
    n: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    """0 and -1: all tokens."""
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
class Asked:
    """A request, read."""

    settings: Settings
    turns: tuple[Turn, ...]
    sounds: tuple[Sound, ...]
    """One for each audio part, in order."""
    stop: tuple[str, ...]
    max_tokens: int | None


def read(body: object) -> Asked:
    """Read the JSON of a request.

    Raises:
        Refusal: naming the field that is missing, wrong, or not supported.
    """
    if not isinstance(body, dict):
        raise Refusal(f"the body is a JSON {type(body).__name__}, an object is wanted")
    given = {name: value for name, value in body.items() if value is not None}
    messages = given.pop("messages", None)
    _refuse_strange(given)
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise Refusal(f"{field}: {first['msg']} ({str(first['input'])[:60]!r} was sent)", param=field) from error
    stop = tuple(one for one in ([settings.stop] if isinstance(settings.stop, str) else settings.stop) if one)
    turns, sounds = _conversation(messages)
    limits = [limit for limit in (settings.max_tokens, settings.max_completion_tokens) if limit is not None]
    return Asked(settings, turns, sounds, stop, min(limits) if limits else None)


def _refuse_strange(given: Body) -> None:
    for name, value in given.items():
        if name in Settings.model_fields or name in IDLE or value in NEUTRAL.get(name, ()):
            continue
        if name in NEUTRAL:
            raise Refusal(f"{name}: {str(value)[:60]!r} is not supported; leave it out", param=name)
        near = get_close_matches(name, [*Settings.model_fields, "messages"], 1)
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        raise Refusal(f"unknown field {name!r}; {hint}", param=name)


def _conversation(messages: object) -> tuple[tuple[Turn, ...], tuple[Sound, ...]]:
    if not isinstance(messages, list) or not messages:
        raise Refusal("messages: a list with at least one message is wanted", param="messages")
    turns: list[Turn] = []
    sounds: list[Sound] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise Refusal(f"{where}: role {str(role)[:40]!r} is none of {', '.join(ROLES)}", param="messages")
        parts, found = _parts(message.get("content"), where)
        role = ROLES[message["role"]]
        if found and role != "user":
            raise Refusal(f"{where}: only a user's message may hold sound", param="messages")
        turns.append(Turn(role, parts))
        sounds += found
    if turns[-1].role != "user":
        raise Refusal(f"messages: the last one is of the {turns[-1].role}; end with the user's", param="messages")
    return tuple(turns), tuple(sounds)


def _parts(content: object, where: str) -> tuple[tuple[Part, ...], list[Sound]]:
    if isinstance(content, str):
        return (_text(content, where),), []
    if not isinstance(content, list) or not content:
        raise Refusal(f"{where}.content: a string, or a list of parts, is wanted", param="messages")
    parts: list[Part] = []
    sounds: list[Sound] = []
    for number, part in enumerate(content):
        at = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        inner = part.get(kind) if isinstance(part, dict) and isinstance(kind, str) else None
        if kind == "text" and isinstance(inner, str):
            parts.append(_text(inner, at))
            continue
        if kind == "input_audio" and isinstance(inner, dict) and isinstance(inner.get("data"), str):
            data = inner["data"]
            sounds.append(Sound(at, url=data) if data.startswith("data:") else Sound(at, data=data))
        elif kind == "audio_url" and isinstance(inner, dict) and isinstance(inner.get("url"), str):
            sounds.append(Sound(at, url=inner["url"]))
        elif kind == "audio_url" and isinstance(inner, str):
            sounds.append(Sound(at, url=inner))
        else:
            raise Refusal(
                f"{at}: a part of type {str(kind)[:40]!r} that cannot be read; send text, input_audio "
                "({data: base64, format}) or audio_url ({url})", param="messages",
            )  # fmt: skip
        parts.append(Audio(at))
    return tuple(parts), sounds


def _text(text: str, where: str) -> Text:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(f"{where}: holds half a character ({error.reason}); send whole ones", param="messages") from error
    return Text(text)
