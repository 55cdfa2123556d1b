"""Who is sampled together: requests wait in a bounded line, one thread owns the model and takes rounds from it.

A round is the first request that waits and every later one that is drawn in the same way (temperature, top-p, top-k,
number of samples), as many as fit: the engine makes one forest of them, those about one sound share it. Each keeps its
own seed, length, stop strings and client: what one of them says does not depend on who else is in the round. Requests
that come while a round is under way wait for its end. An errand (newer weights) waits in the same line and runs alone,
so everything asked before it is answered by the old weights and everything after it by the new ones.
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

from earwise.engine.base import Decoding, Prompt
from earwise.engine.decode_loop import Said
from earwise.engine.local import LocalEngine
from earwise.errors import EarwiseError
from earwise.serve.errors import Refusal
from earwise.serve.stream_text import Piece, Telling

LOG = logging.getLogger("earwise.serve")
GATHER_S = 0.005  # an idle model waits so long for more requests to come,
PATIENCE_S = 0.2  # and at most so long for those that are being decoded


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is sampled at once, and how much may wait."""

    samples: int = 64
    """Of all requests of a round."""
    cells: int = 2**25
    """Requests times the square of the longest prompt: the attention mask of a round, 128 MB in float32."""
    waiting: int = 64
    """Requests in line."""


class Job:
    """One request on its way through the line; its events arrive in the event loop that made it.

    Args:
        prompt: Its key holds the request's seed.
        decoding: With the request's own `max_new_tokens`.
        n: Samples.
        tokens: Of the prompt.
        stop: Strings that end a sample.
        pieces: True tells pieces as they are said, False one at the end of every sample.
    """

    def __init__(
        self, prompt: Prompt, decoding: Decoding, n: int, tokens: int, *, stop: Sequence[str] = (),
        pieces: bool = False,
    ) -> None:  # fmt: skip
        self.prompt, self.decoding, self.n, self.tokens = prompt, decoding, n, tokens
        self.stop, self.pieces = tuple(stop), pieces
        self.cancelled = False
        """Set by the client's side when nobody waits any more; seen at the next token."""
        self.events: asyncio.Queue[list[Piece] | EarwiseError] = asyncio.Queue()
        """What was said since the last event; an error is the last one."""
        self.first_token_at: float | None = None
        """Of `time.monotonic`."""
        self.revision = ""
        """Of the weights that answer, known with the first token."""
        self._loop = asyncio.get_running_loop()

    def tell(self, event: list[Piece] | EarwiseError) -> None:
        """Hand something to the client's side, from any thread."""
        with suppress(RuntimeError):  # a loop that was closed has no client left
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    @property
    def manner(self) -> tuple[Any, ...]:
        """What must be the same within a round."""
        return self.decoding.temperature, self.decoding.top_p, self.decoding.top_k, self.n


@dataclass(frozen=True, slots=True)
class Errand:
    """Something else that the model's thread does, between two rounds."""

    work: Callable[[], Any]
    done: Future[Any]


class Batcher:
    """The line and the thread.

    Args:
        engine: Used by the thread only, from `start` to `close`.
        capacity: See `Capacity`.
    """

    def __init__(self, engine: LocalEngine, capacity: Capacity) -> None:
        self._engine, self._capacity = engine, capacity
        self._line: list[Job | Errand] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="earwise-model", daemon=True)
        self.coming = 0
        """Requests that are being read and decoded; an idle model waits a moment for them. Event loop only."""
        self.running = 0
        """Requests of the round under way."""
        self.rounds = 0
        """Since the start."""

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a request into the line.

        Raises:
            Refusal: if the line is full (429), or the server stops (503).
        """
        with self._changed:
            self.check()
            self._line.append(job)
            self._changed.notify()

    def check(self) -> None:
        """Whether a request would be taken; see `submit`."""
        if self._closing:
            raise Refusal("the server is stopping; ask again later", 503)
        if len(self._line) >= self._capacity.waiting:
            raise Refusal(
                f"{len(self._line)} requests are waiting, as many as may; ask again in a moment", 429,
                code="rate_limit_exceeded",
            )  # fmt: skip

    def run(self, work: Callable[[], Any]) -> "Future[Any]":
        """Have the model's thread do something between two rounds; see `submit`."""
        errand = Errand(work, Future())
        with self._changed:
            self.check()
            self._line.append(errand)
            self._changed.notify()
        return errand.done

    def close(self) -> None:
        """End the round under way at its next token, refuse who waits, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            if isinstance(taken, Errand):
                if not taken.done.set_running_or_notify_cancel():
                    continue
                try:
                    taken.done.set_result(taken.work())
                except Exception as error:  # handed over to whoever waits for it
                    taken.done.set_exception(error)
            elif taken:
                self.running, self.rounds = len(taken), self.rounds + 1
                self._round(taken)
                self.running = 0
        for one in self._line:
            stopping = Refusal("the server is stopping; ask again later", 503)
            if isinstance(one, Errand):
                if one.done.set_running_or_notify_cancel():
                    one.done.set_exception(stopping)
            else:
                one.tell(stopping)

    def _take(self) -> list[Job] | Errand | None:
        """What is to be done next; None: nothing any more."""
        with self._changed:
            idle = not self._line
            while not self._line and not self._closing:
                self._changed.wait()
        if idle:
            self._gather()
        with self._changed:
            if self._closing:
                return None
            self._line = [one for one in self._line if isinstance(one, Errand) or not one.cancelled]
            if self._line and isinstance(self._line[0], Errand):
                return self._line.pop(0)  # type: ignore[return-value]
            taken = choose(self._line, self._capacity)
            self._line = [one for one in self._line if one not in taken]
            return taken

    def _gather(self) -> None:
        """Let those come who are on their way."""
        until = time.monotonic() + PATIENCE_S
        time.sleep(GATHER_S)
        while self.coming and time.monotonic() < until and not self._closing:
            time.sleep(GATHER_S)

    def _round(self, jobs: list[Job]) -> None:
        """Sample jobs of one manner; if that fails, each by itself, so that none pays for another."""
        try:
            self._sample(jobs)
        except Exception as error:  # whatever it is, the thread and the other requests go on
            if len(jobs) > 1:
                for job in jobs:
                    self._round([job])
                return
            if not isinstance(error, EarwiseError):
                LOG.exception("a request failed")
                error = Refusal(f"internal error: {type(error).__name__}: {error}", 500)
            jobs[0].tell(error)

    def _sample(self, jobs: list[Job]) -> None:
        model = self._engine.model
        tellings = [
            [
                Telling(
                    number, model.detokenize, model.eos_ids, stop=job.stop, limit=job.decoding.max_new_tokens,
                    pieces=job.pieces,
                )
                for number in range(job.n)
            ]
            for job in jobs
        ]  # fmt: skip

        def watch(said: Sequence[Sequence[Said]]) -> set[tuple[int, int]]:
            enough: set[tuple[int, int]] = set()
            for prompt, job in enumerate(jobs):
                if job.cancelled or self._closing:
                    enough |= {(prompt, sample) for sample in range(job.n)}
                    continue
                if job.first_token_at is None:
                    job.first_token_at, job.revision = time.monotonic(), self._engine.revision
                heard = [telling.hear(one) for telling, one in zip(tellings[prompt], said[prompt], strict=True)]
                if pieces := [piece for piece in heard if piece is not None]:
                    job.tell(pieces)
                enough |= {(prompt, piece.sample) for piece in pieces if piece.finish}
            return enough

        longest = max(job.decoding.max_new_tokens for job in jobs)
        decoding = replace(jobs[0].decoding, max_new_tokens=longest)
        self._engine.follow([job.prompt for job in jobs], decoding, jobs[0].n, watch)
        if self._closing:
            for job in jobs:
                job.tell(Refusal("the server is stopping; ask again later", 503))


def choose(line: Sequence[Job | Errand], capacity: Capacity) -> list[Job]:
    """The next round: the first in line, and with it, up to the next errand, all of its manner that fit."""
    taken: list[Job] = []
    for one in line:
        if isinstance(one, Errand):
            break
        if taken and one.manner != taken[0].manner:
            continue
        longest = max(job.tokens for job in [*taken, one])
        samples = sum(job.n for job in taken) + one.n
        fits = samples <= capacity.samples and (len(taken) + 1) * longest**2 <= capacity.cells
        if not taken or fits:
            taken.append(one)
    return taken
