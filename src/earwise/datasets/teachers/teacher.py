"""Teachers: what writes the text of a data set. A language model on a server, or sentence templates for trials.

The builders of data sets make `TeacherRequest`s, `request_runner.ask_teacher` sends them and logs every answer. A
teacher turns a request into a JSON body that holds everything that decides the answer and nothing else, so that a hash
of the body can be the key of the logged answer. `TemplateTeacher` is not a language model and never passes for one: its
name stands in every row that it wrote. No torch.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from earwise.engine.remote import openai_http
from earwise.engine.remote.openai_http import JsonObject, RejectedRequest, TemporaryFailure
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

Message = Mapping[str, str]
"""A chat message with `role` and `content`."""
ResponseFormat = Literal["json_schema", "json_object", "none"]
RESPONSE_FORMATS: tuple[ResponseFormat, ...] = ("json_schema", "json_object", "none")
REPAIR_PROMPT = "Your answer could not be used: {error} Answer the same task again, and only that."
"""The user turn that follows an answer that failed its checks."""
TemplateReply = Callable[[Mapping[str, Any]], Any]
"""Fills in the answer to one kind of request: from the request's facts to a JSON value, or to a text."""


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One question to a teacher."""

    id: str
    """Name of the request in logs and messages; not part of its key."""
    kind: str
    """Kind of text that is requested ("question", "chain" ...). It selects the template of a `TemplateTeacher` and
    names the JSON schema."""
    messages: tuple[Message, ...]
    """The conversation."""
    schema: "type[BaseModel] | None" = None
    """Model that the answer must fit, as JSON; None for free text."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known about the subject. Templates read it and the schema's validators get it as their context; it
    is never sent."""
    language: str | None = None
    """Code of the language that the answer must be in; None allows any."""
    sample_index: int = 0
    """Number of the sample: requests that differ in nothing else get independent answers."""
    expected_tokens: int = 200
    """Typical length of the answer in tokens, for estimates and rate limits."""


@dataclass(frozen=True, slots=True)
class TeacherReply:
    """One answer of a teacher, before any check."""

    text: str
    """The answer."""
    input_tokens: int
    """Tokens of the prompt."""
    output_tokens: int
    """Tokens of the answer."""
    finish_reason: Literal["stop", "length"] = "stop"
    """Why the answer ended; "length" if it reached the limit."""
    refused: bool = False
    """Whether the server itself marks the answer as a refusal or as filtered."""
    counted: bool = True
    """Whether the server counted the tokens; False if the counts are estimates."""


SendBody = Callable[[JsonObject], Awaitable[TeacherReply | TemporaryFailure | RejectedRequest]]
"""Sends one request body to the teacher."""


class Teacher(Protocol):
    """Anything that `request_runner.ask_teacher` can send requests to."""

    @property
    def name(self) -> str:
        """Name of the teacher, for the rows that it wrote."""
        ...

    @property
    def is_template(self) -> bool:
        """Whether sentence templates write the answers instead of a language model."""
        ...

    @property
    def price(self) -> tuple[float, float] | None:
        """Price of a million input tokens and of a million output tokens; None if unknown."""
        ...

    def body(self, request: TeacherRequest) -> JsonObject:
        """Everything that decides the answer to a request, as JSON."""
        ...

    def repair_body(self, body: JsonObject, text: str, error: str) -> JsonObject | None:
        """The body that asks again after an unusable answer.

        Args:
            body: Body of the original request.
            text: The unusable answer.
            error: What is wrong with it, as a sentence.
        Returns:
            The new body; None if asking again would not change the answer.
        """
        ...

    def session(self) -> AbstractAsyncContextManager[SendBody]:
        """Connections to the teacher, for the duration of one run."""
        ...


@cache
def json_schema(schema: "type[BaseModel]") -> dict[str, Any]:
    """The JSON schema of a pydantic model; cached, since pydantic takes a millisecond to write it."""
    return schema.model_json_schema()


@dataclass(frozen=True, slots=True)
class TemplateTeacher:
    """Answers with sentence templates filled in from the facts of a request: deterministic and offline.

    Attributes:
        template_replies: Kind of request -> function that fills in the answer.
        version: Version of the sentences; part of every key, so that new sentences are new answers.
        price: Price of a million input and output tokens: nothing.
    """

    template_replies: Mapping[str, TemplateReply]
    version: str = "1"
    price: tuple[float, float] | None = (0.0, 0.0)

    @property
    def name(self) -> str:
        """A name that says that this is a template."""
        return f"template-{self.version}"

    @property
    def is_template(self) -> bool:
        """Always True."""
        return True

    def body(self, request: TeacherRequest) -> JsonObject:
        """Kind and facts of the request, which are all that a template reads.

        Raises:
            ConfigError: if there is no template for this kind of request.
        """
        if request.kind not in self.template_replies:
            raise ConfigError(
                f"the template teacher has no sentences for {request.kind!r}, only for "
                f"{', '.join(self.template_replies)}; name a server with --teacher"
            )
        return {"template": self.version, "kind": request.kind, "facts": request.facts}

    def repair_body(self, body: JsonObject, text: str, error: str) -> JsonObject | None:
        """None: a template always gives the same answer."""
        return None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[SendBody]:
        """Fills in answers without any connection."""

        async def send(body: JsonObject) -> TeacherReply | TemporaryFailure | RejectedRequest:
            value = self.template_replies[body["kind"]](body["facts"])
            return TeacherReply(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 0, 0)

        yield send


@dataclass(frozen=True, slots=True)
class RemoteTeacher:
    """A language model on a server that speaks OpenAI's chat completions: vLLM, llama.cpp, or a hosted API.

    Attributes:
        url: Address up to and including the version, for example `http://127.0.0.1:8000/v1`.
        model: Name of the model on the server.
        api_key: Bearer token; never written to a log.
        temperature: Sampling temperature; 0 is greedy.
        max_tokens: Longest answer in tokens.
        seed: Seed of the server's sampling, to which `sample_index` is added; None sends no seed.
        response_format: How the server is told to answer in JSON: by schema, as any JSON object, or by the prompt alone
            for servers that support neither.
        timeout_s: Longest wait for one answer, in seconds.
        price: Price of a million input tokens and of a million output tokens; None if unknown.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 0.7
    max_tokens: int = 1024
    seed: int | None = 0
    response_format: ResponseFormat = "json_schema"
    timeout_s: float = 120.0
    price: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"teacher {self.url!r} is neither 'template' nor the address of a server; "
                "write for example http://127.0.0.1:8000/v1"
            )
        if self.response_format not in RESPONSE_FORMATS:
            raise ConfigError(f"response format {self.response_format!r} is none of {', '.join(RESPONSE_FORMATS)}")

    @property
    def name(self) -> str:
        """Name of the model. The address is no part of it: the same model gives the same answers at any address."""
        return self.model

    @property
    def is_template(self) -> bool:
        """Always False."""
        return False

    def body(self, request: TeacherRequest) -> JsonObject:
        """The body of a chat completion request."""
        body: JsonObject = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.seed is not None:
            body["seed"] = self.seed + request.sample_index
        if request.schema is not None and self.response_format == "json_schema":
            schema = {"name": request.kind, "schema": json_schema(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema is not None and self.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def repair_body(self, body: JsonObject, text: str, error: str) -> JsonObject | None:
        """The same conversation continued with the unusable answer and what is wrong with it, under another seed."""
        unusable = [{"role": "assistant", "content": text}] if text.strip() else []
        correction = {"role": "user", "content": REPAIR_PROMPT.format(error=error.rstrip(".") + ".")}
        repair = body | {"messages": [*body["messages"], *unusable, correction]}
        return repair | {"seed": body["seed"] + 1} if "seed" in body else repair

    @asynccontextmanager
    async def session(self) -> AsyncIterator[SendBody]:
        """A pool of connections to the server."""
        async with openai_http.connection(self.url, self.api_key, self.timeout_s) as client:

            async def send(body: JsonObject) -> TeacherReply | TemporaryFailure | RejectedRequest:
                answer = await openai_http.post(client, self.url, body)
                return answer if isinstance(answer, TemporaryFailure | RejectedRequest) else _parse_reply(answer, body)

            yield send


def _parse_reply(answer: JsonObject, body: JsonObject) -> TeacherReply:
    """The reply in a chat completion; `body` is the request, for an estimate of tokens that the server did not
    count."""
    choice = answer["choices"][0]
    text, refusal = choice["message"].get("content") or "", choice["message"].get("refusal")
    counts, finish_reason = openai_http.token_usage(answer), choice.get("finish_reason")
    input_tokens, output_tokens = counts or (
        openai_http.estimate_tokens(body["messages"]),
        openai_http.estimate_tokens(text),
    )
    return TeacherReply(
        text=text or refusal or "",
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        finish_reason="length" if finish_reason == "length" else "stop",
        refused=bool(refusal) or finish_reason == "content_filter",
        counted=counts is not None,
    )
