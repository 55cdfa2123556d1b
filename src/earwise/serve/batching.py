"""Batches requests: they wait in a bounded queue, from which one thread, the owner of the model, takes batches.

A batch is the first request in the queue and every later one with the same sampling parameters (temperature, top-p,
top-k, number of completions), as many as fit. The engine samples a batch as one forest, in which requests about the
same audio share its computation. Each request keeps its own seed, length limit, stop strings and client; its answer
does not depend on the other requests of the batch. Requests that arrive while a batch is running wait for its end.

A control task (such as loading newer weights) waits in the same queue and runs alone, so that all requests before it
are answered by the old weights and all requests after it by the new ones.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import PartialCompletion
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.serve.errors import ApiError
from earwise.serve.stream_text import SampleStream, TextDelta

LOG = logging.getLogger("earwise.serve")
POLL_S = 0.005
"""How long an idle model waits for further requests to arrive."""
MAX_ARRIVAL_WAIT_S = 0.2
"""Longest time that an idle model waits for requests whose audio is being decoded."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is sampled at once, and how much may wait.

    Attributes:
        max_samples: Completions of a batch, over all its requests.
        max_attention_cells: Number of requests times the square of the longest prompt: the size of a batch's attention
            mask (128 MB in float32).
        max_waiting: Requests in the queue.
    """

    max_samples: int = 64
    max_attention_cells: int = 2**25
    max_waiting: int = 64


class Job:
    """One request on its way through the queue; its events arrive in the event loop that created it.

    Args:
        prompt: The prompt; its key contains the request's seed.
        sampling_params: Sampling parameters, with the request's own `max_new_tokens`.
        n: Number of completions.
        num_prompt_tokens: Number of tokens of the prompt.
        stop: Strings that end a completion.
        stream: Whether text is sent as it arrives; False sends one delta at the end of every completion.

    Attributes:
        cancelled: Set by the route when nobody waits for the answer any more; noticed at the next token.
        events: Deltas since the last event; an error is the last event.
        first_token_at: Time of the first token (`time.monotonic`).
        revision: Revision of the weights that answer, known with the first token.
    """

    def __init__(
        self, prompt: Prompt, sampling_params: SamplingParams, n: int, num_prompt_tokens: int, *,
        stop: Sequence[str] = (), stream: bool = False,
    ) -> None:  # fmt: skip
        self.prompt, self.sampling_params, self.n = prompt, sampling_params, n
        self.num_prompt_tokens, self.stop, self.stream = num_prompt_tokens, tuple(stop), stream
        self.cancelled = False
        self.events: asyncio.Queue[list[TextDelta] | EarwiseError] = asyncio.Queue()
        self.first_token_at: float | None = None
        self.revision = ""
        self._loop = asyncio.get_running_loop()

    def send(self, event: list[TextDelta] | EarwiseError) -> None:
        """Send an event to the route, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: there is no client left
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """What the requests of a batch must have in common."""
        return self.sampling_params.temperature, self.sampling_params.top_p, self.sampling_params.top_k, self.n


@dataclass(frozen=True, slots=True)
class ControlTask:
    """Work other than sampling that the model's thread does between two batches.

    Attributes:
        work: The function to call.
        future: Receives its result or exception.
    """

    work: Callable[[], Any]
    future: Future[Any]


class Batcher:
    """The queue, and the thread that owns the model.

    Args:
        engine: The engine; only the thread uses it between `start` and `close`.
        capacity: Limits of a batch and of the queue.

    Attributes:
        arriving: Requests that are being parsed and decoded; an idle model waits a moment for them. Event loop only.
        running: Requests of the batch that is being sampled.
        rounds: Number of batches since the start.
    """

    def __init__(self, engine: LocalEngine, capacity: Capacity) -> None:
        self._engine, self._capacity = engine, capacity
        self._queue: list[Job | ControlTask] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run_thread, name="earwise-model", daemon=True)
        self.arriving = 0
        self.running = 0
        self.rounds = 0

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a request into the queue.

        Raises:
            ApiError: if the queue is full (429), or the server is stopping (503).
        """
        self._enqueue(job)

    def run(self, work: Callable[[], Any]) -> "Future[Any]":
        """Have the model's thread call a function between two batches.

        Raises:
            ApiError: as in `submit`.
        """
        task = ControlTask(work, Future())
        self._enqueue(task)
        return task.future

    def check_open(self) -> None:
        """Raise the ApiError with which `submit` would refuse a request now, if it would."""
        if self._closing:
            raise _stopping()
        if len(self._queue) >= self._capacity.max_waiting:
            raise ApiError(
                f"{len(self._queue)} requests are waiting, which is the limit; try again in a moment", 429,
                code="rate_limit_exceeded",
            )  # fmt: skip

    def close(self) -> None:
        """End the running batch at its next token, refuse all waiting requests, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _enqueue(self, entry: Job | ControlTask) -> None:
        with self._changed:
            self.check_open()
            self._queue.append(entry)
            self._changed.notify()

    def _run_thread(self) -> None:
        while (batch := self._next_batch()) is not None:
            if isinstance(batch, ControlTask):
                if not batch.future.set_running_or_notify_cancel():
                    continue
                try:
                    batch.future.set_result(batch.work())
                except Exception as error:  # passed on to whoever waits for the result
                    batch.future.set_exception(error)
            elif batch:
                self.running, self.rounds = len(batch), self.rounds + 1
                self._run_batch(batch)
                self.running = 0
        for entry in self._queue:
            if isinstance(entry, ControlTask):
                if entry.future.set_running_or_notify_cancel():
                    entry.future.set_exception(_stopping())
            else:
                entry.send(_stopping())

    def _next_batch(self) -> list[Job] | ControlTask | None:
        """Wait for work. Returns the next batch or control task, or None when the server stops."""
        with self._changed:
            idle = not self._queue
            while not self._queue and not self._closing:
                self._changed.wait()
        if idle:
            self._wait_for_arrivals()
        with self._changed:
            if self._closing:
                return None
            self._queue = [entry for entry in self._queue if isinstance(entry, ControlTask) or not entry.cancelled]
            if self._queue and isinstance(self._queue[0], ControlTask):
                return self._queue.pop(0)  # type: ignore[return-value]
            batch = select_batch(self._queue, self._capacity)
            self._queue = [entry for entry in self._queue if entry not in batch]
            return batch

    def _wait_for_arrivals(self) -> None:
        """Wait a moment for requests that are being parsed and decoded, so that they join the batch."""
        deadline = time.monotonic() + MAX_ARRIVAL_WAIT_S
        time.sleep(POLL_S)
        while self.arriving and time.monotonic() < deadline and not self._closing:
            time.sleep(POLL_S)

    def _run_batch(self, jobs: list[Job]) -> None:
        """Sample a batch; if that fails, sample each request by itself, so that only the faulty one fails."""
        try:
            self._sample(jobs)
        except Exception as error:  # whatever it is, the thread and the other requests go on
            if len(jobs) > 1:
                for job in jobs:
                    self._run_batch([job])
                return
            if not isinstance(error, EarwiseError):
                LOG.exception("a request failed")
                error = ApiError(f"internal error: {type(error).__name__}: {error}", 500)
            jobs[0].send(error)

    def _sample(self, jobs: list[Job]) -> None:
        """Sample the completions of a batch and send their deltas."""
        streams = [self._sample_streams(job) for job in jobs]

        def on_token(partials: Sequence[Sequence[PartialCompletion]]) -> set[tuple[int, int]]:
            """Send new text after each token. Returns the (request, completion) pairs that need no further tokens."""
            finished: set[tuple[int, int]] = set()
            for number, job in enumerate(jobs):
                if job.cancelled or self._closing:
                    finished |= {(number, sample) for sample in range(job.n)}
                    continue
                if job.first_token_at is None:
                    job.first_token_at, job.revision = time.monotonic(), self._engine.revision
                updates = zip(streams[number], partials[number], strict=True)
                deltas = [delta for stream, partial in updates if (delta := stream.update(partial)) is not None]
                if deltas:
                    job.send(deltas)
                finished |= {(number, delta.sample) for delta in deltas if delta.finish}
            return finished

        longest = max(job.sampling_params.max_new_tokens for job in jobs)
        sampling_params = replace(jobs[0].sampling_params, max_new_tokens=longest)
        self._engine.generate_with_callback([job.prompt for job in jobs], sampling_params, jobs[0].n, on_token)
        if self._closing:
            for job in jobs:
                job.send(_stopping())

    def _sample_streams(self, job: Job) -> list[SampleStream]:
        model = self._engine.model
        return [
            SampleStream(
                sample,
                model.tokenizer.decode,
                model.eos_ids,
                stop=job.stop,
                limit=job.sampling_params.max_new_tokens,
                stream=job.stream,
            )
            for sample in range(job.n)
        ]


def _stopping() -> ApiError:
    return ApiError("the server is stopping; try again later", 503)


def select_batch(queue: Sequence[Job | ControlTask], capacity: Capacity) -> list[Job]:
    """The next batch: the first request, and later ones with its batch key that fit, up to the next control task."""
    batch: list[Job] = []
    for entry in queue:
        if isinstance(entry, ControlTask):
            break
        if batch and entry.batch_key != batch[0].batch_key:
            continue
        longest = max(job.num_prompt_tokens for job in [*batch, entry])
        samples = sum(job.n for job in batch) + entry.n
        cells = (len(batch) + 1) * longest**2
        if not batch or (samples <= capacity.max_samples and cells <= capacity.max_attention_cells):
            batch.append(entry)
    return batch
