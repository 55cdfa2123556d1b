"""Who answers: any OpenAI-compatible server (`Remote`), or sentences filled in from known facts (`TemplateTeacher`).

Between the builders, which make `Request`s, and `build/llm.py`, which asks them. A teacher turns a request into a
`body`: everything that decides the answer, and nothing else, so that its hash is the answer's key. A template is no
language model and never passes for one: its name stands in every row that it made. No torch.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from earwise.engine.remote import openai_http
from earwise.engine.remote.openai_http import JsonObject, TemporaryFailure, RejectedRequest
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

Message = Mapping[str, str]
Structured = Literal["json_schema", "json_object", "none"]
STRUCTURED: tuple[Structured, ...] = ("json_schema", "json_object", "none")
COMPLAINT = "Your answer could not be used: {error} Answer the same task again, and only that."


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to ask."""

    id: str
    """Names it for people; not part of its key."""
    kind: str
    """What is asked for ("question", "chain" ...): which template fills it in, and what counts are kept by."""
    messages: tuple[Message, ...]
    """Chat messages with `role` and `content`."""
    schema: "type[BaseModel] | None" = None
    """What the answer must be, as JSON; None for free text."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known beside: read by templates and given to the schema's validators as context, never sent."""
    language: str | None = None
    """Code of the language that the answer must be in; None: any."""
    draw: int = 0
    """Ask the same thing again for another sample: 1, 2 ..."""
    expected_tokens: int = 200
    """Typical length of the answer, for estimates and rate limits."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a teacher said."""

    text: str
    input_tokens: int
    output_tokens: int
    finish: Literal["stop", "length"] = "stop"
    refused: bool = False
    """The server itself says that this is a refusal or was filtered."""
    counted: bool = True
    """False where the server gave no token counts and they are estimates."""


Ask = Callable[[JsonObject], Awaitable[Reply | TemporaryFailure | RejectedRequest]]


class Teacher(Protocol):
    """Anything that `llm.run` can ask."""

    @property
    def name(self) -> str:
        """Who it is, for rows."""
        ...

    @property
    def is_template(self) -> bool:
        """True if no language model is behind it."""
        ...

    @property
    def price(self) -> tuple[float, float] | None:
        """Cost of a million input and a million output tokens; None: not told."""
        ...

    def body(self, request: Request) -> JsonObject:
        """Everything that decides the answer, as JSON."""
        ...

    def again(self, body: JsonObject, text: str, error: str) -> JsonObject | None:
        """The body that asks again after an answer that could not be used; None if that would change nothing."""
        ...

    def session(self) -> AbstractAsyncContextManager[Ask]:
        """Open connections for one run."""
        ...


@cache
def schema_of(schema: "type[BaseModel]") -> dict[str, Any]:
    """The JSON schema of a model; made once, since that takes a millisecond."""
    return schema.model_json_schema()


@dataclass(frozen=True, slots=True)
class TemplateTeacher:
    """Fills sentences in from the facts of a request. Deterministic, offline, and named in every row as what it is.

    Attributes:
        fillers: Kind of request -> function of its facts that gives the answer (a JSON value, or a text).
        version: Part of every key: another wording is another answer.
    """

    fillers: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    version: str = "1"
    price: tuple[float, float] | None = (0.0, 0.0)

    @property
    def name(self) -> str:
        """Says that it is a template."""
        return f"template-{self.version}"

    @property
    def is_template(self) -> bool:
        """Always."""
        return True

    def body(self, request: Request) -> JsonObject:
        """The facts are all that a template reads."""
        if request.kind not in self.fillers:
            raise ConfigError(
                f"the template teacher has no sentences for {request.kind!r}, only for {', '.join(self.fillers)}; "
                "name a server with --teacher"
            )
        return {"template": self.version, "kind": request.kind, "facts": request.facts}

    def again(self, body: JsonObject, text: str, error: str) -> JsonObject | None:
        """It would say the same again."""
        return None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """No connection needed."""

        async def ask(body: JsonObject) -> Reply | TemporaryFailure | RejectedRequest:
            said = self.fillers[body["kind"]](body["facts"])
            return Reply(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False), 0, 0)

        yield ask


@dataclass(frozen=True, slots=True)
class RemoteTeacher:
    """A server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, or an API.

    Attributes:
        url: Up to and including the version, for example `http://127.0.0.1:8000/v1`.
        model: As the server calls it.
        api_key: Sent as a bearer token; never written anywhere.
        temperature: Of sampling; 0 is greedy.
        max_tokens: Longest answer.
        seed: Sent along, plus the request's `draw`; None sends none.
        structured: How JSON is asked for: by schema, as any JSON object, or in words alone for servers without either.
        timeout_s: Of one answer.
        price: Cost of a million input and a million output tokens.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 0.7
    max_tokens: int = 1024
    seed: int | None = 0
    structured: Structured = "json_schema"
    timeout_s: float = 120.0
    price: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"teacher {self.url!r} is neither 'template' nor the address of a server; "
                "write for example http://127.0.0.1:8000/v1"
            )
        if self.structured not in STRUCTURED:
            raise ConfigError(f"structured {self.structured!r} is none of {', '.join(STRUCTURED)}")

    @property
    def name(self) -> str:
        """The model's name: the same model behind another address gives the same answers."""
        return self.model

    @property
    def is_template(self) -> bool:
        """Never."""
        return False

    def body(self, request: Request) -> JsonObject:
        """What is posted."""
        body: JsonObject = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.seed is not None:
            body["seed"] = self.seed + request.draw
        if request.schema is not None and self.structured == "json_schema":
            schema = {"name": request.kind, "schema": schema_of(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema is not None and self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def again(self, body: JsonObject, text: str, error: str) -> JsonObject | None:
        """The same conversation with the unusable answer and what is wrong with it; another seed."""
        said = [{"role": "assistant", "content": text}] if text.strip() else []
        complaint = {"role": "user", "content": COMPLAINT.format(error=error.rstrip(".") + ".")}
        repeated = body | {"messages": [*body["messages"], *said, complaint]}
        return repeated | {"seed": body["seed"] + 1} if "seed" in body else repeated

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """A pool of connections."""
        async with openai_http.connection(self.url, self.api_key, self.timeout_s) as client:

            async def ask(body: JsonObject) -> Reply | TemporaryFailure | RejectedRequest:
                answer = await openai_http.post(client, self.url, body)
                return answer if isinstance(answer, TemporaryFailure | RejectedRequest) else _reply(answer, body)

            yield ask


def _reply(answer: JsonObject, body: JsonObject) -> Reply:
    """What a chat completion says."""
    choice = answer["choices"][0]
    text, refusal = choice["message"].get("content") or "", choice["message"].get("refusal")
    counts, finish = openai_http.token_usage(answer), choice.get("finish_reason")
    spent = counts or (openai_http.estimate_tokens(body["messages"]), openai_http.estimate_tokens(text))
    return Reply(
        text=text or refusal or "",
        input_tokens=spent[0],
        output_tokens=spent[1],
        finish="length" if finish == "length" else "stop",
        refused=bool(refusal) or finish == "content_filter",
        counted=counts is not None,
    )
