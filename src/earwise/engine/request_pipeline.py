"""Send requests about sound files to an engine: clips are decoded ahead, prompts are batched, failures are isolated.

The one way from files to completions. Evaluation, pass rates, captions and `earwise ask` build `AudioRequest`s and
receive one `RequestResult` each, in order:

requests -> clips decoded in threads while the engine works -> prompts -> engine, `batch` at a time -> results

A clip that cannot be read, and a prompt that alone makes the engine fail, become results with an `error`; an engine
that does not answer at all raises. Requests about one clip should follow each other: the clip is then decoded once, and
an engine that caches encoder states encodes it once.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from earwise.audio import is_silent
from earwise.engine.base import Engine, Prompt, SamplingParams
from earwise.engine.clip_reader import ClipReader, DecodedClip
from earwise.errors import AudioError, DataError, EarwiseError, EngineError
from earwise.prompts import repeat_audio_parts
from earwise.types import AudioClip, Completion, Turn, Waveform

DECODE_THREADS = 3
"""Threads that decode; a clip takes milliseconds, a batch of answers takes seconds."""
REQUEST_ERRORS = (EngineError, AudioError, DataError)
"""Errors that concern a single prompt; anything else is a fault of the program and passes through."""


@dataclass(frozen=True, slots=True)
class AudioRequest:
    """A conversation about clips, to be answered by an engine."""

    key: str
    """Name of the prompt; the engine's random draws depend on `(seed, key)`."""
    turns: tuple[Turn, ...]
    """The conversation, ending with the user."""
    clips: tuple[AudioClip | Waveform, ...]
    """The sound of each audio part, in order: a file or segment, or a waveform at the engine's sample rate."""
    alter: Callable[[int, Waveform], Waveform] | None = None
    """Changes a decoded clip (its number in `clips`, its waveform) before the engine receives it; the blind controls of
    an evaluation put silence or noise in its place. None: no change."""


@dataclass(frozen=True, slots=True)
class RequestAudio:
    """What the engine received for the clips of one request, without the waveforms themselves."""

    chunk_samples: tuple[tuple[int, ...], ...]
    """For each clip the length of each of its chunks, in samples; more than one chunk only under `chunk`."""
    sha256: tuple[str, ...]
    """SHA-256 of each file, hexadecimal; empty for a clip that was given as a waveform."""
    is_silent: bool
    """Whether there are clips and all of them are silent (before `AudioRequest.alter`)."""

    @property
    def num_chunks(self) -> int:
        """Number of waveforms that the engine received."""
        return sum(map(len, self.chunk_samples))


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The outcome of one request: completions, or the error that stands in for them."""

    request: AudioRequest
    completions: tuple[Completion, ...] = ()
    error: EarwiseError | None = None
    audio: RequestAudio | None = None
    """What the engine received; None if a clip could not be read."""
    seconds: float = 0.0
    """Time that the engine took for the request's batch, divided by the number of prompts in it."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request with its decoded prompt, or with the error of a clip that cannot be read."""

    request: AudioRequest
    prompt: Prompt | None = None
    audio: RequestAudio | None = None
    error: AudioError | None = None


def run_requests(
    engine: Engine,
    requests: Sequence[AudioRequest],
    sampling_params: SamplingParams,
    *,
    on_batch: Callable[[list[RequestResult]], None],
    n: int = 1,
    batch: int = 16,
    clip_reader: ClipReader | None = None,
) -> None:
    """Answer requests in order, a batch at a time; the clips of the next batches are decoded meanwhile.

    Args:
        engine: The engine that answers.
        requests: The requests; their order is the order of the results.
        sampling_params: Sampling parameters, the same for all requests.
        on_batch: Called with the results of each batch before the next one is sent, so that a caller who writes them to
            disk loses at most one batch when the process is killed. `results.extend` collects them.
        n: Completions of each request.
        batch: Requests handed to the engine at a time; changes nothing but speed.
        clip_reader: Reader of the clips; None makes one that refuses long clips. Pass one to choose `long_audio`, or
            to share its cache between several calls.
    Raises:
        EngineError, AudioError, DataError: if the engine fails on every prompt, including one that it has answered
            before; the results of the earlier batches have been handed over.
    """
    reader = clip_reader or ClipReader.for_engine(engine)
    answered_before: Prompt | None = None
    prepared = _prepare_ahead(requests, reader, ahead=2 * batch)
    try:
        while batch_items := list(islice(prepared, batch)):
            started = time.perf_counter()
            prompts = [item.prompt for item in batch_items if item.prompt is not None]
            outcomes = generate_each(engine, prompts, sampling_params, n, answered_before)
            seconds = (time.perf_counter() - started) / max(len(prompts), 1)
            answered = [
                p for p, outcome in zip(prompts, outcomes, strict=True) if not isinstance(outcome, EarwiseError)
            ]
            answered_before = answered[-1] if answered else answered_before
            on_batch(_results(batch_items, outcomes, seconds))
    finally:
        prepared.close()


def generate_each(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling_params: SamplingParams,
    n: int = 1,
    answered_before: Prompt | None = None,
) -> list[list[Completion] | EarwiseError]:
    """The completions of each prompt, or the error of a prompt that alone makes the engine fail.

    When the batch fails, every prompt is sent by itself. If some still fail, a prompt that the engine has answered is
    sent again: only if that succeeds are the failures those of the prompts and not of an engine that is down.

    Args:
        engine: The engine that answers.
        prompts: The prompts of one batch.
        sampling_params: Sampling parameters.
        n: Completions of each prompt.
        answered_before: A prompt that the engine answered in an earlier batch, if there is one.
    Returns:
        For each prompt its `n` completions, or its error.
    Raises:
        EngineError, AudioError, DataError: if the engine is down, or has never answered.
    """
    if not prompts:
        return []
    try:
        return list(engine.generate(prompts, sampling_params, n))
    except REQUEST_ERRORS as error:
        outcomes: list[list[Completion] | EarwiseError] = [error]
    if len(prompts) > 1:
        outcomes = [_generate_alone(engine, prompt, sampling_params, n) for prompt in prompts]
    answered = [prompt for prompt, outcome in zip(prompts, outcomes, strict=True) if isinstance(outcome, list)]
    probe_prompt = answered[-1] if answered else answered_before
    failure = next((outcome for outcome in outcomes if isinstance(outcome, EarwiseError)), None)
    if failure is None:
        return outcomes
    if probe_prompt is None or isinstance(_generate_alone(engine, probe_prompt, sampling_params, n), EarwiseError):
        raise failure
    return outcomes


def _generate_alone(
    engine: Engine, prompt: Prompt, sampling_params: SamplingParams, n: int
) -> list[Completion] | EarwiseError:
    try:
        return engine.generate([prompt], sampling_params, n)[0]
    except REQUEST_ERRORS as error:
        return error


def _prepare_ahead(
    requests: Iterable[AudioRequest], reader: ClipReader, ahead: int
) -> Generator[_Prepared, None, None]:
    """The requests in order with their prompts; `ahead` of them are decoded while the engine is busy with others."""
    pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
    pending: deque[Future[_Prepared]] = deque()
    try:
        for request in requests:
            pending.append(pool.submit(_prepare, request, reader))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _prepare(request: AudioRequest, reader: ClipReader) -> _Prepared:
    """Decode the clips of a request and write its prompt."""
    try:
        clips = [
            reader.read(clip) if isinstance(clip, AudioClip) else DecodedClip(clip, is_silent(clip), False)
            for clip in request.clips
        ]
        sha256 = tuple(reader.sha256(clip) if isinstance(clip, AudioClip) else "" for clip in request.clips)
    except AudioError as error:
        return _Prepared(request, error=error)
    waveforms = [clip.waveform for clip in clips]
    if request.alter is not None:
        waveforms = [request.alter(number, waveform) for number, waveform in enumerate(waveforms)]
    chunked = [reader.split(waveform) for waveform in waveforms]
    audio = RequestAudio(
        chunk_samples=tuple(tuple(map(len, clip_chunks)) for clip_chunks in chunked),
        sha256=sha256,
        is_silent=bool(clips) and all(clip.is_silent for clip in clips),
    )
    turns = repeat_audio_parts(request.turns, [len(clip_chunks) for clip_chunks in chunked])
    flat = tuple(chunk for clip_chunks in chunked for chunk in clip_chunks)
    return _Prepared(request, Prompt(turns, flat, request.key), audio)


def _results(
    batch_items: Sequence[_Prepared], outcomes: Sequence[list[Completion] | EarwiseError], seconds: float
) -> list[RequestResult]:
    """One result per request of a batch; `outcomes` are those of the requests that have a prompt, in order."""
    remaining = iter(outcomes)
    results = []
    for item in batch_items:
        outcome = item.error if item.prompt is None else next(remaining)
        if isinstance(outcome, list):
            results.append(RequestResult(item.request, tuple(outcome), None, item.audio, seconds))
        else:
            results.append(RequestResult(item.request, (), outcome, item.audio, seconds))
    return results
