"""Batches requests: they wait in a bounded queue, from which one thread, the owner of the model, takes batches.

A batch is the first request in the queue and every later one with the same sampling parameters (temperature, top-p,
top-k, number of completions), as many as fit (`job.py`). The engine samples a batch as one forest, in which requests
about the same audio share its computation. Each request keeps its own seed, length limit, stop strings and client; its
answer does not depend on the other requests of the batch.

Requests that arrive while a batch is running form a batch of their own as soon as there is room, and running batches
take turns, a pass each. A short answer thus does not wait for a long one. On an accelerator, whose decoding cache holds
one batch at a time, a batch that has begun to decode is finished first.

A control task (such as loading newer weights) waits in the same queue and runs alone, so that all requests before it
are answered by the old weights and all requests after it by the new ones.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from earwise.engine.decode_loop import PartialCompletion
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.serve.errors import ApiError
from earwise.serve.sampling.job import Capacity, ControlTask, Job, select_batch
from earwise.serve.sampling.stream_text import SampleStream

LOG = logging.getLogger("earwise.serve")
POLL_S = 0.005
"""How long an idle model waits for further requests to arrive."""
MAX_ARRIVAL_WAIT_S = 0.2
"""Longest time that an idle model waits for requests whose audio is being decoded."""


@dataclass(slots=True, eq=False)
class _RunningBatch:
    """A batch that is being sampled.

    Attributes:
        jobs: Its requests.
        steps: Advances it by a pass.
    """

    jobs: list[Job]
    steps: Iterator[None]


class Batcher:
    """The queue, and the thread that owns the model.

    Args:
        engine: The engine; only the thread uses it between `start` and `close`.
        capacity: Limits of a batch and of the queue.

    Attributes:
        arriving: Requests that are being decoded; an idle model waits a moment for them. Event loop only.
        rounds: Number of batches since the start.
    """

    def __init__(self, engine: LocalEngine, capacity: Capacity) -> None:
        self._engine, self._capacity = engine, capacity
        self._queue: list[Job | ControlTask] = []
        self._running: deque[_RunningBatch] = deque()
        """Batches that take turns; the one whose turn it is, is the last."""
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run_thread, name="earwise-model", daemon=True)
        self.arriving = 0
        self.rounds = 0

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Number of requests that are being sampled."""
        return sum(len(batch.jobs) for batch in tuple(self._running))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Append a request to the queue.

        Raises:
            ApiError: if the queue is full, or the server is stopping.
        """
        self._enqueue(job)

    def run(self, work: Callable[[], Any], *, exclusive: bool = True) -> Future[Any]:
        """Let the model's thread do something; see `ControlTask`. Returns a future of its result.

        Raises:
            ApiError: as `submit`.
        """
        future: Future[Any] = Future()
        self._enqueue(ControlTask(work, future, exclusive))
        return future

    def check_open(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            ApiError: if the queue is full, or the server is stopping.
        """
        if self._closing:
            raise _stopping()
        if len(self._queue) >= self._capacity.max_waiting:
            raise ApiError(
                f"{self._capacity.max_waiting} requests are waiting already; try again later", 429,
                code="rate_limit_exceeded",
            )  # fmt: skip

    def close(self) -> None:
        """End the running batches at their next token, refuse all waiting requests, and end the thread."""
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
        while self._wait_for_work():
            self._run_control_tasks()
            self._start_batch()
            if self._running:
                self._advance(self._running[0])
        for batch in self._running:
            for job in batch.jobs:
                job.send(_stopping())
        for entry in self._queue:
            if isinstance(entry, Job):
                entry.send(_stopping())
            elif entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(_stopping())

    def _wait_for_work(self) -> bool:
        """Wait until something is running or waiting. Returns False when the server stops."""
        if not self._running:
            with self._changed:
                idle = not self._queue
                while not self._queue and not self._closing:
                    self._changed.wait()
            if idle:
                self._wait_for_arrivals()
        return not self._closing

    def _wait_for_arrivals(self) -> None:
        """Wait a moment for requests that are being decoded, so that they join the batch."""
        deadline = time.monotonic() + MAX_ARRIVAL_WAIT_S
        time.sleep(POLL_S)
        while self.arriving and time.monotonic() < deadline and not self._closing:
            time.sleep(POLL_S)

    def _run_control_tasks(self) -> None:
        """Do the control tasks whose turn it is: those that need not be alone, and the first if nothing is running."""
        with self._changed:
            due = [entry for entry in self._queue if isinstance(entry, ControlTask) and not entry.exclusive]
            if not self._running and self._queue and isinstance(self._queue[0], ControlTask):
                due = [self._queue[0]]
            self._queue = [entry for entry in self._queue if entry not in due]
        for task in due:
            task.run()

    def _start_batch(self) -> None:
        """Let waiting requests begin, if there is room for them."""
        with self._changed:
            self._queue = [entry for entry in self._queue if isinstance(entry, ControlTask) or not entry.cancelled]
            jobs = select_batch(self._queue, self._capacity, [batch.jobs for batch in self._running])
            self._queue = [entry for entry in self._queue if entry not in jobs]
        if jobs:
            self.rounds += 1
            self._running.appendleft(_RunningBatch(jobs, self._sample(jobs)))

    def _advance(self, batch: _RunningBatch) -> None:
        """Advance a batch until it pauses, and put it at the end of the line; if it fails, sample each of its requests
        by itself, so that only the faulty one fails."""
        self._running.rotate(-1)
        try:
            if self._is_abandoned(batch.jobs):
                batch.steps.close()  # type: ignore[attr-defined]  # a generator
            else:
                next(batch.steps)
                return
        except StopIteration:
            pass
        except Exception as error:  # whatever it is, the thread and the other requests go on
            if len(batch.jobs) > 1:
                self._running.remove(batch)
                self._running.extend(_RunningBatch([job], self._sample([job])) for job in batch.jobs)
                return
            if not isinstance(error, EarwiseError):
                LOG.exception("a request failed")
                error = ApiError(f"internal error: {type(error).__name__}: {error}", 500)
            batch.jobs[0].send(error)
        self._running.remove(batch)

    def _is_abandoned(self, jobs: Sequence[Job]) -> bool:
        """Whether nobody waits for any of these requests."""
        return self._closing or all(job.cancelled for job in jobs)

    def _sample(self, jobs: list[Job]) -> Generator[None, None, None]:
        """Sample the completions of a batch and send their deltas, in steps."""
        model = self._engine.model
        streams = [job.sample_streams(model.tokenizer.decode, model.eos_ids) for job in jobs]

        def on_token(partials: Sequence[Sequence[PartialCompletion]]) -> set[tuple[int, int]]:
            """Send new text after each token. Returns the (request, completion) pairs that need no further tokens."""
            finished: set[tuple[int, int]] = set()
            for number, job in enumerate(jobs):
                if job.cancelled or self._closing:
                    finished |= {(number, sample) for sample in range(job.n)}
                    continue
                if job.first_token_at is None:
                    job.first_token_at, job.revision = time.monotonic(), self._engine.revision
                _send_new_text(job, streams[number], partials[number])
                finished |= {(number, sample) for sample, stream in enumerate(streams[number]) if stream.finish}
            return finished

        def wants_pause() -> bool:
            return len(self._running) > 1 or bool(self._queue) or self._is_abandoned(jobs)

        longest = max(job.sampling_params.max_new_tokens for job in jobs)
        sampling_params = replace(jobs[0].sampling_params, max_new_tokens=longest)
        yield from self._engine.generate_in_steps(
            [job.prompt for job in jobs], sampling_params, jobs[0].n, on_token, wants_pause
        )
        if self._closing:
            for job in jobs:
                job.send(_stopping())


def _send_new_text(job: Job, streams: Sequence[SampleStream], partials: Sequence[PartialCompletion]) -> None:
    """Send what the completions of a request have gained."""
    updates = zip(streams, partials, strict=True)
    deltas = [delta for stream, partial in updates if (delta := stream.update(partial)) is not None]
    if deltas:
        job.send(deltas)


def _stopping() -> ApiError:
    return ApiError("the server is stopping; try again later", 503)
