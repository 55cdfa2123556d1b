"""Waiting for an answer: until it is whole, or its time is up, or its client has gone.

Between the line (`batching.py`), which sends pieces, and the routes (`api.py`).
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from earwise.errors import EarwiseError
from earwise.serve.batching import Job
from earwise.serve.errors import Refusal
from earwise.serve.stream_text import Piece

T = TypeVar("T")


class Answer:
    """What has come back of a job so far.

    Args:
        job: In the line, or past it.
        arrived: When the request came, of `time.monotonic`.
        until: When its time is up.
    """

    def __init__(self, job: Job, arrived: float, until: float) -> None:
        self.job, self.arrived, self._until = job, arrived, until
        self.pieces: list[list[Piece]] = [[] for _ in range(job.n)]
        self._fresh: list[Piece] = []

    @property
    def over(self) -> bool:
        """Whether every sample has ended."""
        return all(said and said[-1].finish for said in self.pieces)

    def fresh(self) -> list[Piece]:
        """What has come since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    async def listen(self, *, whole: bool) -> None:
        """Wait for the next pieces, or for all of them.

        Raises:
            EarwiseError: that the model's thread sent in place of pieces, or if the time is up.
        """
        while True:
            left = self._until - time.monotonic()
            try:
                event = await asyncio.wait_for(self.job.events.get(), max(left, 0.001))
            except TimeoutError as error:
                raise Refusal(
                    "the answer took too long; ask for fewer tokens, or later", 504, code="timeout"
                ) from error
            if isinstance(event, EarwiseError):
                raise event
            for piece in event:
                self.pieces[piece.sample].append(piece)
            self._fresh += event
            if not whole or self.over:
                return


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, unless the client goes away before.

    Raises:
        Refusal: if it does (499, which nobody reads but the counts).
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving, task = asyncio.ensure_future(gone()), asyncio.ensure_future(work)
    try:
        await asyncio.wait({leaving, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal("the client went away", 499)
        return task.result()
    finally:
        leaving.cancel()
        task.cancel()
