"""The HTTP routes: OpenAI's chat completions over one local model, monitoring, and the web page.

A request passes through `access_middleware.py` (who may ask, and how much), `json_body.py` and `chat_request.py`
(parsed), `audio_inputs.py` (waveforms), `batching.py` (sampled together with others) and `response.py`. Every refusal
is returned as OpenAI's error JSON. A client that disconnects, or a request that takes too long, ends its sampling at
the next token. Whatever takes time runs in a thread beside the event loop, which only passes messages.
"""

import asyncio
import hashlib
import hmac
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.models.prompt_encoding import conversation_path
from earwise.serve import response
from earwise.serve.audio_inputs import decode_inputs, fetch_remote
from earwise.serve.chat_request import ChatRequest, parse_request
from earwise.serve.errors import ApiError, error_body
from earwise.serve.http.access_middleware import RequestGuard
from earwise.serve.http.json_body import read_json
from earwise.serve.http.limits import MB, ServerLimits
from earwise.serve.http.openapi import openapi_document
from earwise.serve.metrics import Metrics, prometheus_text
from earwise.serve.sampling.batching import Batcher
from earwise.serve.sampling.completion import PendingCompletion, cancel_on_disconnect
from earwise.serve.sampling.job import Capacity, Job
from earwise.serve.sampling.weight_updates import WeightUpdater
from earwise.serve.transcription import parse_form
from earwise.types import Waveform

HeaderFactory = Callable[[str], response.ResponseHeader]
"""Makes the header of a response once the revision of the weights is known."""
MAX_RANDOM_SEED = 2**31
"""Seeds of requests that give none are below this."""


DECODERS = 2
"""Requests whose audio is decoded and whose text is tokenised at once."""
MIN_REQUEST_MB = 240
"""Memory that the keys and values of a request may use in any case, where `ServerLimits.max_request_mb` does not say.
What else a request takes (its body, its audio, the activations of a pass) is up to 60 MB more: 300 MB in all."""


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
        self._limiter = CapacityLimiter(DECODERS)

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
        get, post = ["GET", "HEAD"], ["POST"]
        for path, methods, route in (
            ("/", get, self._get_page), ("/health", get, self._get_health), ("/metrics", get, self._get_metrics),
            ("/openapi.json", get, self._get_openapi), ("/v1/models", get, self._get_models),
            ("/v1/models/{name:path}", get, self._get_models), ("/v1/chat/completions", post, self._post_chat),
            ("/v1/load_lora_adapter", post, self._post_weights),
            ("/v1/audio/transcriptions", post, self._post_transcription),
        ):  # fmt: skip
            app.add_api_route(path, route, methods=methods, response_model=None)
        app.add_exception_handler(EarwiseError, _error_response)
        app.add_exception_handler(HTTPException, _unknown_route_response)
        app.add_middleware(RequestGuard, limits=self._limits)
        return app

    async def _get_page(self) -> Response:
        return HTMLResponse(files("earwise").joinpath("assets/serve/page.html").read_text(encoding="utf-8"))

    async def _get_health(self) -> Response:
        return JSONResponse({"status": "ok", "model": self._name, "revision": self._engine.revision})

    async def _get_openapi(self) -> Response:
        return JSONResponse(openapi_document(self._limits))

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
        body = await read_json(request)
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
        self._batcher.check_open()
        form = await parse_form(request, self._limiter)
        future = self._batcher.run(lambda: recogniser.transcribe(form.waveform, form.language), exclusive=False)
        text = await asyncio.wrap_future(future)
        return PlainTextResponse(text) if form.response_format == "text" else JSONResponse({"text": text})

    async def _post_chat(self, request: Request) -> Response:
        """Answer a chat completion, whole or as a stream."""
        arrived, job = time.monotonic(), None
        try:
            self._authenticate(request)
            self._batcher.check_open()
            body = await read_json(request)
            self._batcher.arriving += 1
            try:
                chat_request = await run_in_threadpool(parse_request, body, self._limits)
                job, make_header = await self._prepare_job(chat_request, arrived + self._limits.timeout_s)
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
        return await run_in_threadpool(lambda: JSONResponse(response.chat_completion(header, pending.deltas)))

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

    async def _prepare_job(self, chat_request: ChatRequest, deadline: float) -> tuple[Job, HeaderFactory]:
        """Check a request against the limits, fetch and decode its audio, and make its job.

        Args:
            chat_request: The request.
            deadline: Time by which its audio must have been fetched (`time.monotonic`).
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
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                fetched = await fetch_remote(chat_request.audio, limits.access)
        except TimeoutError as error:
            raise ApiError("the audio could not be fetched in time; send it in the request", 408) from error
        waveforms, prompt_ids, audio_tokens = await to_thread.run_sync(
            self._encode, chat_request, fetched, limiter=self._limiter
        )
        if len(prompt_ids) > limits.max_prompt_tokens:
            raise ApiError(
                f"messages: {len(prompt_ids)} tokens are more than this server's limit of {limits.max_prompt_tokens}; "
                "send less", param="messages", code="context_length_exceeded",
            )  # fmt: skip
        self._check_memory(len(prompt_ids), params.n * max_tokens)
        seed = self._seeds.randrange(MAX_RANDOM_SEED) if params.seed is None else params.seed
        # The seed is part of the prompt's key, so that requests with different seeds can be sampled in one batch.
        prompt = Prompt(chat_request.turns, tuple(waveforms), f"seed {seed}")
        sampling_params = SamplingParams(max_tokens, params.temperature, params.top_p, max(params.top_k, 0))
        first_clip = hashlib.blake2b(waveforms[0].tobytes()).digest() if waveforms else None
        job = Job(
            prompt, sampling_params, params.n, prompt_ids, first_clip=first_clip, stop=chat_request.stop,
            stream=params.stream,
        )  # fmt: skip
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

    def _check_memory(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Refuse a request whose keys and values would take more memory than a request may use."""
        limits, token_bytes = self._limits, self._engine.cache_bytes_per_token
        longest_mb = (limits.max_prompt_tokens + limits.max_tokens) * token_bytes / MB
        allowed_mb = limits.max_request_mb or max(MIN_REQUEST_MB, longest_mb)
        needed_mb = (prompt_tokens + completion_tokens) * token_bytes / MB
        if needed_mb > allowed_mb:
            raise ApiError(
                f"n x max_tokens: {completion_tokens} tokens after a prompt of {prompt_tokens} take {needed_mb:.0f} MB "
                f"of memory, {allowed_mb:.0f} are allowed; ask for fewer, or start the server with a larger "
                "--max-request-mb", param="n",
            )  # fmt: skip

    def _encode(
        self, chat_request: ChatRequest, fetched: Mapping[int, bytes]
    ) -> tuple[list[Waveform], tuple[int, ...], int]:
        """Decode the audio and tokenise the prompt.

        Returns:
            Waveforms, token ids of the prompt, and how many of them are audio.
        """
        engine, limits = self._engine, self._limits
        waveforms = decode_inputs(
            chat_request.audio, fetched, limits.access, sample_rate=engine.sample_rate,
            max_clip_s=engine.max_audio_s, max_total_s=limits.max_audio_s, channel=limits.channel,
        )  # fmt: skip
        lengths = [len(waveform) for waveform in waveforms]
        path = conversation_path(engine.model, chat_request.turns, range(len(waveforms)), lengths, generate=True)
        return waveforms, path.ids, sum(clip >= 0 for clip in path.clips)

    def _authenticate(self, request: Request) -> None:
        """Refuse a request without the API key, if one is required."""
        if self._limits.api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # Headers are decoded as Latin-1, whatever the client meant; a key may be any text in UTF-8.
        is_correct = hmac.compare_digest(key.strip().encode("latin-1"), self._limits.api_key.strip().encode())
        if not is_correct or scheme.lower() != "bearer":
            raise ApiError(
                "the API key is missing or wrong; send Authorization: Bearer KEY", 401, code="invalid_api_key"
            )

    def _check_model_name(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                f"there is no model {name[:80]!r}, only {self._name!r}", 404, param="model", code="model_not_found"
            )

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
    api_error = ApiError(f"{request.method} {request.url.path[:200]}: {error.detail}", error.status_code)
    return JSONResponse(error_body(api_error), error.status_code, error.headers)
