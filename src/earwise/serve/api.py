"""The HTTP routes: OpenAI's chat completions over one local model, monitoring, and the web page.

A request passes through `chat_request.py` (parsed), `audio_inputs.py` (waveforms), `batching.py` (sampled together with
others) and `response.py`. Every refusal is returned as OpenAI's error JSON. A client that disconnects, or a request
that takes too long, ends its sampling at the next token. JSON bodies must have the JSON content type, which prevents
pages of other sites from posting to the server.
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

from earwise.audio import Channel
from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.models.prompt_encoding import conversation_path
from earwise.serve import response
from earwise.serve.audio_inputs import AudioAccess, decode_inputs, fetch_audio
from earwise.serve.batching import Batcher, Capacity, Job
from earwise.serve.chat_request import ChatRequest, parse_request
from earwise.serve.completion import PendingCompletion, cancel_on_disconnect
from earwise.serve.errors import ApiError, error_body
from earwise.serve.metrics import Metrics, prometheus_text
from earwise.serve.transcription import parse_form
from earwise.serve.weight_updates import WeightUpdater
from earwise.types import Waveform

HeaderFactory = Callable[[str], response.ResponseHeader]
"""Makes the header of a response once the revision of the weights is known."""
MAX_RANDOM_SEED = 2**31
"""Seeds of requests that give none are below this."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a request may ask for.

    Attributes:
        api_key: Bearer token that all routes below /v1 and /metrics require; None requires none.
        access: Files and addresses that requests may refer to.
        max_tokens: Largest number of tokens of a completion.
        default_tokens: Number of tokens for requests that name no limit.
        max_prompt_tokens: Largest number of tokens of a prompt.
        max_audio_s: Longest audio of a request, all clips together, in seconds. Each clip is also limited by what the
            model accepts.
        max_body_bytes: Largest body.
        channel: What the channels of a clip become: their `mean`, or the `first`.
        timeout_s: Longest time from a request's arrival to its end, in seconds.
    """

    api_key: str | None = None
    access: AudioAccess = field(default_factory=AudioAccess)
    max_tokens: int = 1024
    default_tokens: int = 256
    max_prompt_tokens: int = 8192
    max_audio_s: float = 300.0
    max_body_bytes: int = 32 * 2**20
    channel: Channel = "mean"
    timeout_s: float = 300.0


class Api:
    """The HTTP application of one model.

    Args:
        engine: The model's engine; nothing else may use it from now on.
        name: Name of the model in requests.
        limits: What a request may ask for.
        capacity: Limits of a batch and of the queue.
        weight_updater: Loads newer weights; None refuses such requests.
        recogniser: Transcribes speech; None refuses such requests.
        seeds: Source of seeds for requests that give none.
    """

    def __init__(
        self, engine: LocalEngine, name: str, limits: ServerLimits, capacity: Capacity, *,
        weight_updater: WeightUpdater | None = None, recogniser: Recogniser | None = None, seeds: random.Random,
    ) -> None:  # fmt: skip
        self._engine, self._name, self._limits, self._seeds = engine, name, limits, seeds
        self._weight_updater, self._recogniser = weight_updater, recogniser
        self._capacity = capacity
        self._batcher = Batcher(engine, capacity)
        self._metrics = Metrics()
        self._started = int(time.time())

    def app(self) -> FastAPI:
        """The ASGI application. The model's thread starts and ends with it."""

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self._batcher.start()
            try:
                yield
            finally:
                await run_in_threadpool(self._batcher.close)

        app = FastAPI(title="earwise", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
        for path, method, route in (
            ("/", "GET", self._get_page), ("/health", "GET", self._get_health), ("/metrics", "GET", self._get_metrics),
            ("/v1/models", "GET", self._get_models), ("/v1/models/{name:path}", "GET", self._get_models),
            ("/v1/chat/completions", "POST", self._post_chat), ("/v1/load_lora_adapter", "POST", self._post_weights),
            ("/v1/audio/transcriptions", "POST", self._post_transcription),
        ):  # fmt: skip
            app.add_api_route(path, route, methods=[method], response_model=None)
        app.add_exception_handler(EarwiseError, _error_response)
        app.add_exception_handler(HTTPException, _unknown_route_response)
        app.add_exception_handler(Exception, _internal_error_response)
        return app

    async def _get_page(self) -> Response:
        return HTMLResponse(files("earwise").joinpath("assets/serve/page.html").read_text(encoding="utf-8"))

    async def _get_health(self) -> Response:
        return JSONResponse({"status": "ok", "model": self._name, "revision": self._engine.revision})

    async def _get_metrics(self, request: Request) -> Response:
        self._authenticate(request)
        batcher, engine = self._batcher, self._engine
        text = prometheus_text(
            self._metrics, waiting=batcher.waiting, running=batcher.running, rounds=batcher.rounds,
            computed=engine.stats.computed_tokens, sampled=engine.stats.sampled_tokens,
        )  # fmt: skip
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _get_models(self, request: Request, name: str | None = None) -> Response:
        self._authenticate(request)
        engine = self._engine
        card = response.model_card(self._name, engine.revision, self._started, engine.sample_rate, engine.max_audio_s)
        if name is not None:
            self._check_model_name(name)
        return JSONResponse({"object": "list", "data": [card]} if name is None else card)

    async def _post_weights(self, request: Request) -> Response:
        """Replace the model's weights; see `weight_updates.py`."""
        self._authenticate(request)
        if self._weight_updater is None:
            raise ApiError("weight updates are not allowed; start the server with --allow-weight-updates", 403)
        body = await self._read_json(request)
        name, path = (body.get(key) if isinstance(body, dict) else None for key in ("lora_name", "lora_path"))
        if not isinstance(name, str) or not isinstance(path, str):
            raise ApiError("lora_name and lora_path are required, both strings")
        updater = self._weight_updater
        revision = await asyncio.wrap_future(self._batcher.run(lambda: updater.load(Path(path))))
        self._metrics.weights += 1
        return PlainTextResponse(f"Success: {name} is loaded in place of {self._name}, revision {revision}")

    async def _post_transcription(self, request: Request) -> Response:
        """Transcribe an audio file; see `transcription.py`."""
        self._authenticate(request)
        if (recogniser := self._recogniser) is None:
            raise ApiError("transcription is not enabled; start the server with --transcribe", 404)
        form = await parse_form(request, self._limits.max_body_bytes)
        future = self._batcher.run(lambda: recogniser.transcribe(form.waveform, form.language))
        text = await asyncio.wrap_future(future)
        return PlainTextResponse(text) if form.response_format == "text" else JSONResponse({"text": text})

    async def _post_chat(self, request: Request) -> Response:
        """Answer a chat completion, whole or as a stream."""
        arrived, job = time.monotonic(), None
        try:
            self._authenticate(request)
            self._batcher.check_open()
            self._batcher.arriving += 1
            try:
                chat_request = parse_request(await self._read_json(request))
                job, make_header = await self._prepare_job(chat_request)
                self._batcher.submit(job)
            finally:
                self._batcher.arriving -= 1
            pending = PendingCompletion(job, arrived, arrived + self._limits.timeout_s)
            await cancel_on_disconnect(request, pending.receive(until_finished=not chat_request.params.stream))
        except BaseException as error:  # also when the task is cancelled
            if job is not None:
                job.cancelled = True
            if isinstance(error, EarwiseError):
                self._metrics.requests[error.status if isinstance(error, ApiError) else 400] += 1
            raise
        if chat_request.params.stream:
            events = self._stream(pending, make_header, include_usage=chat_request.params.stream_options.include_usage)
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        header = make_header(pending.job.revision)
        self._count(pending, header, 200)
        return JSONResponse(response.chat_completion(header, pending.deltas))

    async def _stream(
        self, pending: PendingCompletion, make_header: HeaderFactory, *, include_usage: bool
    ) -> AsyncIterator[str]:
        """The events of a streamed response whose first delta has arrived."""
        status, header = 499, make_header(pending.job.revision)
        try:
            for body in response.stream_start(header, pending.job.n):
                yield response.server_sent_event(body)
            while True:
                for delta in pending.take_new():
                    yield response.server_sent_event(response.stream_chunk(header, delta))
                if pending.finished:
                    break
                await pending.receive(until_finished=False)
            if include_usage:
                yield response.server_sent_event(response.usage_chunk(header, pending.deltas))
            status = 200
            yield response.STREAM_END
        except EarwiseError as error:
            status = error.status if isinstance(error, ApiError) else 500
            yield response.server_sent_event(error_body(error))
            yield response.STREAM_END
        finally:
            pending.job.cancelled = True
            self._count(pending, header, status)

    async def _prepare_job(self, chat_request: ChatRequest) -> tuple[Job, HeaderFactory]:
        """Check a request against the limits, fetch and decode its audio, and make its job.

        Raises:
            EarwiseError: for whatever is wrong with the request.
        """
        params, limits = chat_request.params, self._limits
        self._check_model_name(params.model or self._name)
        max_tokens = limits.default_tokens if chat_request.max_tokens is None else chat_request.max_tokens
        if max_tokens > limits.max_tokens:
            raise ApiError(f"max_tokens: {max_tokens} is more than this server's limit of {limits.max_tokens}")
        if params.n > self._capacity.max_samples:
            raise ApiError(f"n: {params.n} is more than this server's limit of {self._capacity.max_samples}", param="n")
        audio_files = [await fetch_audio(source, limits.access) for source in chat_request.audio]
        waveforms, prompt_ids, audio_tokens = await run_in_threadpool(self._encode, chat_request, audio_files)
        if len(prompt_ids) > limits.max_prompt_tokens:
            raise ApiError(
                f"messages: {len(prompt_ids)} tokens are more than this server's limit of {limits.max_prompt_tokens}; "
                "send less", param="messages", code="context_length_exceeded",
            )  # fmt: skip
        seed = self._seeds.randrange(MAX_RANDOM_SEED) if params.seed is None else params.seed
        # The seed is part of the prompt's key, so that requests with different seeds can be sampled in one batch.
        prompt = Prompt(chat_request.turns, tuple(waveforms), f"seed {seed}")
        sampling_params = SamplingParams(max_tokens, params.temperature, params.top_p, max(params.top_k, 0))
        job = Job(prompt, sampling_params, params.n, len(prompt_ids), stop=chat_request.stop, stream=params.stream)
        response_id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._metrics.audio_s += sum(len(waveform) for waveform in waveforms) / self._engine.sample_rate

        def make_header(revision: str) -> response.ResponseHeader:
            return response.ResponseHeader(
                id=response_id,
                created=created,
                model=self._name,
                revision=revision,
                seed=seed,
                prompt_ids=prompt_ids,
                audio_tokens=audio_tokens,
                logprobs=params.logprobs,
                return_token_ids=params.return_token_ids,
                decode_token=lambda token: self._engine.model.tokenizer.decode([token]),
            )

        return job, make_header

    def _encode(
        self, chat_request: ChatRequest, audio_files: Sequence[bytes]
    ) -> tuple[list[Waveform], tuple[int, ...], int]:
        """Decode the audio and tokenise the prompt.

        Returns:
            Waveforms, token ids of the prompt, and how many of them are audio.
        """
        engine = self._engine
        waveforms = decode_inputs(
            audio_files,
            chat_request.audio,
            engine.sample_rate,
            engine.max_audio_s,
            self._limits.max_audio_s,
            self._limits.channel,
        )
        lengths = [len(waveform) for waveform in waveforms]
        path = conversation_path(engine.model, chat_request.turns, range(len(waveforms)), lengths, generate=True)
        return waveforms, path.ids, sum(clip >= 0 for clip in path.clips)

    def _authenticate(self, request: Request) -> None:
        """Refuse a request without the API key, if one is required."""
        if self._limits.api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        is_correct = hmac.compare_digest(key.strip().encode(), self._limits.api_key.encode())
        if not is_correct or scheme.lower() != "bearer":
            raise ApiError(
                "the API key is missing or wrong; send Authorization: Bearer KEY", 401, code="invalid_api_key"
            )

    def _check_model_name(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                f"there is no model {name[:80]!r}, only {self._name!r}", 404, param="model", code="model_not_found"
            )

    async def _read_json(self, request: Request) -> Any:
        """The JSON body of a request; a body over the size limit is refused without reading the rest."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise ApiError(f"the content-type is {content_type[:60]!r}; it must be application/json", 415)
        limit = self._limits.max_body_bytes
        too_large = ApiError(f"the body is larger than {limit / 2**20:g} MB; send fewer or shorter clips", 413)
        content_length = request.headers.get("content-length", "")
        if content_length.isdecimal() and int(content_length) > limit:
            raise too_large
        body = bytearray()
        async for block in request.stream():
            body += block
            if len(body) > limit:
                raise too_large
        try:
            return await run_in_threadpool(json.loads, body)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"the body is not valid JSON ({error})") from error

    def _count(self, pending: PendingCompletion, header: response.ResponseHeader, status: int) -> None:
        """Add a request that has ended to the metrics."""
        usage, metrics = response.usage(header, pending.deltas), self._metrics
        metrics.requests[status] += 1
        metrics.prompt_tokens += usage["prompt_tokens"]
        metrics.completion_tokens += usage["completion_tokens"]
        if status == 200:
            metrics.answered += 1
            metrics.answer_s += time.monotonic() - pending.arrived
            metrics.first_token_s += (pending.job.first_token_at or pending.arrived) - pending.arrived


async def _error_response(_: Request, error: Exception) -> Response:
    assert isinstance(error, EarwiseError)
    status = error.status if isinstance(error, ApiError) else 400
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    return JSONResponse(error_body(error), status, headers)


async def _unknown_route_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    api_error = ApiError(f"{request.method} {request.url.path}: {error.detail}", error.status_code)
    return JSONResponse(error_body(api_error), error.status_code, error.headers)


async def _internal_error_response(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(ApiError(f"internal error: {type(error).__name__}: {error}", 500)), 500)
