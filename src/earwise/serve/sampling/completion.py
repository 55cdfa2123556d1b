"""Waiting for a completion until it is whole, its time is up, or its client has disconnected.

Between the queue (`batching.py`), which sends deltas, and the routes (`api.py`).
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from earwise.errors import EarwiseError
from earwise.serve.errors import ApiError
from earwise.serve.sampling.job import Job
from earwise.serve.sampling.stream_text import TextDelta

T = TypeVar("T")


class PendingCompletion:
    """What has arrived of the completions of a request so far.

    Args:
        job: The request's job, queued or running.
        arrived: Time of arrival (`time.monotonic`).
        deadline: Time at which the request fails with status 504 (`time.monotonic`).
    """

    def __init__(self, job: Job, arrived: float, deadline: float) -> None:
        self.job, self.arrived, self._deadline = job, arrived, deadline
        self.deltas: list[list[TextDelta]] = [[] for _ in range(job.n)]
        self._new_deltas: list[TextDelta] = []

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        return all(deltas and deltas[-1].finish for deltas in self.deltas)

    def take_new(self) -> list[TextDelta]:
        """The deltas that have arrived since the last call."""
        deltas, self._new_deltas = self._new_deltas, []
        return deltas

    async def receive(self, *, until_finished: bool) -> None:
        """Wait for the next deltas, or for all of them.

        Raises:
            EarwiseError: that the model's thread sent instead of deltas, or if the time is up.
        """
        while True:
            remaining = self._deadline - time.monotonic()
            try:
                event = await asyncio.wait_for(self.job.events.get(), max(remaining, 0.001))
            except TimeoutError as error:
                raise ApiError(
                    "the answer took too long; request fewer tokens, or try again later", 504, code="timeout"
                ) from error
            if isinstance(event, EarwiseError):
                raise event
            for delta in event:
                self.deltas[delta.sample].append(delta)
            self._new_deltas += event
            if not until_finished or self.finished:
                return


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, and cancel it if the client disconnects first.

    Raises:
        ApiError: with status 499 if the client disconnects; nobody reads it, but it is counted.
    """

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    disconnect, task = asyncio.ensure_future(wait_for_disconnect()), asyncio.ensure_future(work)
    try:
        await asyncio.wait({disconnect, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client disconnected", 499)
        return task.result()
    finally:
        disconnect.cancel()
        task.cancel()
