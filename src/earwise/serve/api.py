"""The routes: OpenAI's chat completions over one local model, what watches it, and the page.

request -> `asked.py` (what is asked) -> `sounds.py` (waveforms) -> `batching.py` (sampled with others) -> `reply.py`.
Everything refused comes back as OpenAI's error JSON. A client that goes away, or an answer that takes too long, ends
its sampling at the next token. JSON must say so in its content type: that keeps pages of other sites from posting here.
"""

import asyncio
import hmac
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.engine.base import Decoding, Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.models.prompt_encoding import conversation_path
from earwise.serve import response
from earwise.serve.audio_inputs import Access, decoded, fetch
from earwise.serve.batching import Batcher, Capacity, Job
from earwise.serve.chat_request import Asked, read
from earwise.serve.completion import Answer, unless_gone
from earwise.serve.errors import Refusal, body_of
from earwise.serve.metrics import Metrics, exposed
from earwise.serve.transcription import read_form
from earwise.serve.weight_updates import Weights
from earwise.types import Waveform

Heads = Callable[[str], response.Head]
"""Makes the head of an answer once the revision of the weights is known."""
SEEDS = 2**31  # where none is given


@dataclass(frozen=True, slots=True)
class Rules:
    """What a request may ask for."""

    api_key: str | None = None
    """Wanted as a bearer token by everything under /v1 and by /metrics; None: nobody is asked."""
    access: Access = field(default_factory=Access)
    max_tokens: int = 1024
    """Of an answer."""
    default_tokens: int = 256
    """Of an answer whose request names no limit."""
    max_prompt_tokens: int = 8192
    max_audio_s: float = 300.0
    """Of all sounds of a request; each is held to what the model hears."""
    max_body_bytes: int = 32 * 2**20
    timeout_s: float = 300.0
    """From a request's arrival to its end."""


class Api:
    """The server of one model.

    Args:
        engine: Warm, and nobody else's from now on.
        name: That requests name it by.
        rules: See `Rules`.
        capacity: Of the line and of a round.
        weights: Takes newer ones; None: they are refused.
        recogniser: Writes down speech; None: nobody does.
        draws: Of seeds for requests that give none.
    """

    def __init__(
        self, engine: LocalEngine, name: str, rules: Rules, capacity: Capacity, *, weights: Weights | None = None,
        recogniser: Recogniser | None = None, draws: random.Random,
    ) -> None:  # fmt: skip
        self._engine, self._name, self._rules, self._weights, self._draws = engine, name, rules, weights, draws
        self._capacity, self._recogniser = capacity, recogniser
        self._batcher = Batcher(engine, capacity)
        self._metrics = Metrics()
        self._started = int(time.time())

    def app(self) -> FastAPI:
        """The ASGI application; its life is the model thread's life."""

        @asynccontextmanager
        async def life(_: FastAPI) -> AsyncIterator[None]:
            self._batcher.start()
            try:
                yield
            finally:
                await run_in_threadpool(self._batcher.close)

        app = FastAPI(title="earwise", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
        for path, method, route in (
            ("/", "GET", self._page), ("/health", "GET", self._health), ("/metrics", "GET", self._exposed),
            ("/v1/models", "GET", self._models), ("/v1/models/{name:path}", "GET", self._models),
            ("/v1/chat/completions", "POST", self._chat), ("/v1/load_lora_adapter", "POST", self._load),
            ("/v1/audio/transcriptions", "POST", self._transcribe),
        ):  # fmt: skip
            app.add_api_route(path, route, methods=[method], response_model=None)
        app.add_exception_handler(EarwiseError, _refused)
        app.add_exception_handler(HTTPException, _no_such_route)
        app.add_exception_handler(Exception, _our_fault)
        return app

    async def _page(self) -> Response:
        return HTMLResponse(files("earwise").joinpath("assets/serve/page.html").read_text(encoding="utf-8"))

    async def _health(self) -> Response:
        return JSONResponse({"status": "ok", "model": self._name, "revision": self._engine.revision})

    async def _exposed(self, request: Request) -> Response:
        self._know(request)
        batcher, engine = self._batcher, self._engine
        text = exposed(
            self._metrics, waiting=batcher.waiting, running=batcher.running, rounds=batcher.rounds,
            computed=engine.tally.distinct, sampled=engine.tally.sampled,
        )  # fmt: skip
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request, name: str | None = None) -> Response:
        self._know(request)
        engine = self._engine
        card = response.card(self._name, engine.revision, self._started, engine.sample_rate, engine.max_audio_s)
        if name is not None:
            self._check_name(name)
        return JSONResponse({"object": "list", "data": [card]} if name is None else card)

    async def _load(self, request: Request) -> Response:
        """Newer weights for the model, in its place; see `weights.py`."""
        self._know(request)
        if self._weights is None:
            raise Refusal("weights are not exchanged here; start the server with --allow-weight-updates", 403)
        body = await self._json(request)
        name, path = (body.get(key) if isinstance(body, dict) else None for key in ("lora_name", "lora_path"))
        if not isinstance(name, str) or not isinstance(path, str):
            raise Refusal("lora_name and lora_path are wanted, two strings")
        weights = self._weights
        revision = await asyncio.wrap_future(self._batcher.run(lambda: weights.load(Path(path))))
        self._metrics.weights += 1
        return PlainTextResponse(f"Success: {name} is loaded in place of {self._name}, revision {revision}")

    async def _transcribe(self, request: Request) -> Response:
        """The words of a file; see `transcribe.py`."""
        self._know(request)
        if (recogniser := self._recogniser) is None:
            raise Refusal("nothing is written down here; start the server with --transcribe", 404)
        form = await read_form(request, self._rules.max_body_bytes)
        work = self._batcher.run(lambda: recogniser.transcribe(form.wave, form.language))
        text = await asyncio.wrap_future(work)
        return PlainTextResponse(text) if form.form == "text" else JSONResponse({"text": text})

    async def _chat(self, request: Request) -> Response:
        """An answer, whole or as a stream."""
        arrived, job = time.monotonic(), None
        try:
            self._know(request)
            self._batcher.check()
            self._batcher.coming += 1
            try:
                asked = read(await self._json(request))
                job, head = await self._job(asked)
                self._batcher.submit(job)
            finally:
                self._batcher.coming -= 1
            answer = Answer(job, arrived, arrived + self._rules.timeout_s)
            await unless_gone(request, answer.listen(whole=not asked.settings.stream))
        except BaseException as error:  # being cancelled among them
            if job is not None:
                job.cancelled = True
            if isinstance(error, EarwiseError):
                self._metrics.requests[error.status if isinstance(error, Refusal) else 400] += 1
            raise
        if asked.settings.stream:
            told = self._stream(answer, head, include_usage=asked.settings.stream_options.include_usage)
            quiet = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(told, media_type="text/event-stream", headers=quiet)
        self._count(answer, head(answer.job.revision), 200)
        return JSONResponse(response.whole(head(answer.job.revision), answer.pieces))

    async def _stream(self, answer: Answer, head: Heads, *, include_usage: bool) -> AsyncIterator[str]:
        """The events of an answer whose first piece is there."""
        status, about = 499, head(answer.job.revision)
        try:
            for body in response.opening(about, answer.job.n):
                yield response.event(body)
            while True:
                for piece in answer.fresh():
                    yield response.event(response.chunk(about, piece))
                if answer.over:
                    break
                await answer.listen(whole=False)
            if include_usage:
                yield response.event(response.closing(about, answer.pieces))
            status = 200
            yield response.DONE
        except EarwiseError as error:
            status = error.status if isinstance(error, Refusal) else 500
            yield response.event(body_of(error))
            yield response.DONE
        finally:
            answer.job.cancelled = True
            self._count(answer, about, status)

    async def _job(self, asked: Asked) -> tuple[Job, Heads]:
        """The request as the line takes it.

        Raises:
            EarwiseError: for whatever is wrong with it.
        """
        settings, rules = asked.settings, self._rules
        self._check_name(settings.model or self._name)
        limit = rules.default_tokens if asked.max_tokens is None else asked.max_tokens
        if limit > rules.max_tokens:
            raise Refusal(f"max_tokens: {limit} is more than the {rules.max_tokens} that this server gives")
        if settings.n > self._capacity.samples:
            raise Refusal(
                f"n: {settings.n} is more than the {self._capacity.samples} that this server draws", param="n"
            )
        data = [await fetch(sound, rules.access) for sound in asked.sounds]
        waves, ids, clips = await run_in_threadpool(self._heard, asked, data)
        if len(ids) > rules.max_prompt_tokens:
            raise Refusal(
                f"messages: {len(ids)} tokens, this server takes {rules.max_prompt_tokens}; send less",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        seed = self._draws.randrange(SEEDS) if settings.seed is None else settings.seed
        # The seed goes into the key, so that requests of different seeds are drawn in one round.
        prompt = Prompt(asked.turns, tuple(waves), f"seed {seed}")
        decoding = Decoding(limit, settings.temperature, settings.top_p, max(settings.top_k, 0))
        job = Job(prompt, decoding, settings.n, len(ids), stop=asked.stop, pieces=settings.stream)
        made = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._metrics.audio_s += sum(len(wave) for wave in waves) / self._engine.sample_rate

        def head(revision: str) -> response.Head:
            return response.Head(
                *made, self._name, revision, seed, ids, clips, settings.logprobs, settings.return_token_ids,
                lambda token: self._engine.model.detokenize([token]),
            )  # fmt: skip

        return job, head

    def _heard(self, asked: Asked, data: Sequence[bytes]) -> tuple[list[Waveform], tuple[int, ...], int]:
        """Waveforms, tokens of the prompt, and how many of them are sound."""
        engine = self._engine
        waves = decoded(data, asked.sounds, engine.sample_rate, engine.max_audio_s, self._rules.max_audio_s)
        path = conversation_path(
            engine.model, asked.turns, range(len(waves)), [len(wave) for wave in waves], generate=True
        )
        return waves, path.ids, sum(clip >= 0 for clip in path.clips)

    def _know(self, request: Request) -> None:
        """Ask for the key."""
        wanted = self._rules.api_key
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = wanted is None or hmac.compare_digest(given.strip().encode(), wanted.encode())
        if not right or (wanted is not None and scheme.lower() != "bearer"):
            raise Refusal(
                "the API key is missing or wrong; send Authorization: Bearer KEY", 401, code="invalid_api_key"
            )

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise Refusal(
                f"there is no model {name[:80]!r}, only {self._name!r}", 404, param="model", code="model_not_found"
            )

    async def _json(self, request: Request) -> Any:
        """The body, read as far as it may be long."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(f"content-type is {kind[:60]!r}, application/json is wanted", 415)
        limit = self._rules.max_body_bytes
        long = Refusal(f"the body is larger than {limit / 2**20:g} MB; send fewer or shorter sounds", 413)
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > limit:
            raise long
        body = bytearray()
        async for block in request.stream():
            body += block
            if len(body) > limit:
                raise long
        try:
            return await run_in_threadpool(json.loads, body)
        except (ValueError, RecursionError) as error:
            raise Refusal(f"the body is no JSON ({error})") from error

    def _count(self, answer: Answer, head: response.Head, status: int) -> None:
        said, metrics = response.usage(head, answer.pieces), self._metrics
        metrics.requests[status] += 1
        metrics.prompt_tokens += said["prompt_tokens"]
        metrics.completion_tokens += said["completion_tokens"]
        if status == 200:
            metrics.answered += 1
            metrics.answer_s += time.monotonic() - answer.arrived
            metrics.first_token_s += (answer.job.first_token_at or answer.arrived) - answer.arrived


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, EarwiseError)
    status = error.status if isinstance(error, Refusal) else 400
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    return JSONResponse(body_of(error), status, headers)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = Refusal(f"{request.method} {request.url.path}: {error.detail}", error.status_code)
    return JSONResponse(body_of(told), error.status_code, error.headers)


async def _our_fault(_: Request, error: Exception) -> Response:
    return JSONResponse(body_of(Refusal(f"internal error: {type(error).__name__}: {error}", 500)), 500)
