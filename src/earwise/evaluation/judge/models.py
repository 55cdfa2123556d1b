"""The models that can be a judge: any OpenAI-compatible server, and any model that earwise can load.

Both are asked at temperature 0 and hand every reply on as soon as it is there, so that a stopped run loses none.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from earwise.engine.base import Engine, Prompt, SamplingParams
from earwise.engine.remote import chat_format, openai_http
from earwise.engine.remote.address import ServerAddress, is_remote, parse_address
from earwise.engine.remote.client import run_coroutine
from earwise.engine.remote.openai_http import JsonObject, RateLimitedSender, RejectedRequest, TemporaryFailure
from earwise.errors import ConfigError, EngineError
from earwise.evaluation.judge.judging import JudgeRequest
from earwise.types import Role, Text, Turn

BATCH = 16
"""Requests that a model in this process answers together."""


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What became of one request."""

    text: str = ""
    """The judge's text."""
    error: str = ""
    """Why there is no text; empty if there is one."""
    tokens: tuple[int, int] | None = None
    """Tokens of prompt and reply, where the server counts them."""


OnReply = Callable[[JudgeRequest, JudgeReply], None]


class JudgeModel(Protocol):
    """Anything that answers the requests to a judge."""

    @property
    def name(self) -> str:
        """Name of the model, for the judgements that it wrote."""
        ...

    def answer(self, requests: Sequence[JudgeRequest], on_reply: OnReply, attempt: int = 0) -> None:
        """Answer all requests.

        Args:
            requests: The requests.
            on_reply: Called for each of them, in any order. A model whose reply would be the same as before need not
                call it.
            attempt: How often these requests were answered already; another reply is wanted.
        Raises:
            EngineError: if the model refuses everything, or stays away; replies until then were handed on.
        """
        ...


class ServerJudge:
    """A judge behind a server that speaks OpenAI's chat completions.

    Args:
        address: Server, model and limits.
        notify: Called with a line about every long pause.
    """

    def __init__(self, address: ServerAddress, notify: Callable[[str], None] = lambda _: None) -> None:
        self.address = address
        self._sender = RateLimitedSender[JsonObject](
            address.limits, lambda reply: sum(openai_http.token_usage(reply) or (0, 0)), notify=notify
        )
        self._failures_in_a_row = 0

    @property
    def name(self) -> str:
        """The model's name on its server."""
        return self.address.model

    def answer(self, requests: Sequence[JudgeRequest], on_reply: OnReply, attempt: int = 0) -> None:
        """Send all requests, as many at a time as the limits allow; see `JudgeModel`."""
        try:
            run_coroutine(self._answer(requests, on_reply, attempt))
        except BaseExceptionGroup as group:  # of a single error, since the first one ends all workers
            raise _first_error(group) from None

    async def _answer(self, requests: Sequence[JudgeRequest], on_reply: OnReply, attempt: int) -> None:
        pending = iter(requests)
        address = self.address

        async def work(client: Any) -> None:
            for request in pending:
                reply = await self._reply(client, request, attempt)
                on_reply(request, reply)
                self._failures_in_a_row = self._failures_in_a_row + 1 if reply.error else 0
                if self._failures_in_a_row >= address.limits.give_up_after:
                    raise EngineError(
                        f"judge {self.name}: {self._failures_in_a_row} requests in a row failed (last: {reply.error}); "
                        "finished judgements are kept and the same command continues from here"
                    )

        connection = openai_http.connection(address.url, address.api_key, address.timeout_s)
        async with connection as client, asyncio.TaskGroup() as group:
            for _ in range(min(address.limits.concurrency, len(requests))):
                group.create_task(work(client))

    async def _reply(self, client: Any, request: JudgeRequest, attempt: int) -> JudgeReply:
        """Send one request, with retries while the server is busy or away."""
        body: JsonObject = {
            "model": self.address.model, "messages": list(request.messages), "max_tokens": request.max_tokens,
            "temperature": 0, "seed": request.seed + attempt,
        }  # fmt: skip
        expected_tokens = openai_http.estimate_tokens(request.messages) + request.max_tokens
        reply = await self._sender.send(
            lambda attempted: openai_http.post(client, self.address.url, attempted), body, expected_tokens,
            random.Random(request.item),
        )  # fmt: skip
        if isinstance(reply, TemporaryFailure | RejectedRequest):
            return JudgeReply(error=openai_http.without_key(reply.reason, self.address.api_key))
        return JudgeReply(chat_format.text(reply["choices"][0]), tokens=openai_http.token_usage(reply))


class EngineJudge:
    """A judge in this process.

    Args:
        engine: The engine, which is asked without any sound.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        """The engine's name, with the revision of its weights."""
        return f"{self._engine.name}@{self._engine.revision}"

    def answer(self, requests: Sequence[JudgeRequest], on_reply: OnReply, attempt: int = 0) -> None:
        """Answer in batches; greedy replies do not change, so only the first attempt is made. See `JudgeModel`."""
        if attempt:
            return
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            sampling_params = SamplingParams(max(request.max_tokens for request in batch))
            prompts = [Prompt(_turns(request), (), f"{request.item} {request.part}") for request in batch]
            for request, completions in zip(batch, self._engine.generate(prompts, sampling_params), strict=True):
                on_reply(request, JudgeReply(completions[0].text))


def open_judge(
    name: str, open_engine: Callable[[str], Engine], notify: Callable[[str], None] = lambda _: None
) -> JudgeModel:
    """The judge of a name.

    Args:
        name: Address of a server, or any name of a model that can be loaded.
        open_engine: Loads a model.
        notify: Called with lines about progress.
    Raises:
        ConfigError: if the address is wrong, or the server has several models and none is named.
        EngineError: if the server does not answer.
    """
    if not is_remote(name):
        return EngineJudge(open_engine(name))
    address = parse_address(name)
    return ServerJudge(address if address.model else run_coroutine(_with_only_model(address)), notify)


async def _with_only_model(address: ServerAddress) -> ServerAddress:
    """The address with the only model of its server."""
    from dataclasses import replace

    import httpx

    try:
        async with openai_http.connection(address.url, address.api_key, address.timeout_s) as client:
            response = await client.get(f"{address.url}/models")
            names = [str(card["id"]) for card in response.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{address.url}/models: no list of models ({error}); name one: {address.url}#NAME") from error
    if len(names) != 1:
        raise ConfigError(f"{address.url} has {', '.join(names) or 'no models'}; name one: {address.url}#NAME")
    return replace(address, model=names[0])


def _turns(request: JudgeRequest) -> tuple[Turn, ...]:
    roles: dict[str, Role] = {"system": "system", "user": "user"}
    return tuple(Turn(roles[message["role"]], (Text(message["content"]),)) for message in request.messages)


def _first_error(error: BaseException) -> BaseException:
    """The error inside nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
