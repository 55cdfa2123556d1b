"""What waits in the server's queue: requests to be sampled, and other work of the model's thread. And how much of it
fits into one batch."""

import asyncio
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.prefill import group_prompts
from earwise.errors import EarwiseError
from earwise.serve.sampling.stream_text import SampleStream, TextDelta


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is sampled at once, and how much may wait.

    Attributes:
        max_samples: Completions of all running batches, over all their requests.
        max_attention_cells: Number of trees of a batch times the square of the largest: tokens that are compared.
        max_cache_tokens: Tokens of all running batches, prompts and completions; None allows any number.
        max_batches: Batches that take turns.
        max_waiting: Requests in the queue.
    """

    max_samples: int = 64
    max_attention_cells: int = 2**25
    max_cache_tokens: int | None = None
    max_batches: int = 4
    max_waiting: int = 64


class Job:
    """One request on its way through the queue; its events arrive in the event loop that created it.

    Args:
        prompt: The prompt; its key contains the request's seed.
        sampling_params: Sampling parameters, with the request's own `max_new_tokens`.
        n: Number of completions.
        prompt_ids: Tokens of the prompt.
        first_clip: What identifies the prompt's first clip; None without audio.
        stop: Strings that end a completion.
        stream: Whether text is sent as it arrives; False sends one delta at the end of every completion.

    Attributes:
        cancelled: Set by the route when nobody waits for the answer any more; noticed at the next token.
        events: Deltas since the last event; an error is the last event.
        first_token_at: Time of the first token (`time.monotonic`).
        revision: Revision of the weights that answer, known with the first token.
    """

    def __init__(
        self, prompt: Prompt, sampling_params: SamplingParams, n: int, prompt_ids: Sequence[int], *,
        first_clip: Hashable = None, stop: Sequence[str] = (), stream: bool = False,
    ) -> None:  # fmt: skip
        self.prompt, self.sampling_params, self.n = prompt, sampling_params, n
        self.prompt_ids, self.first_clip = prompt_ids, first_clip
        self.stop, self.stream = tuple(stop), stream
        self.cancelled = False
        self.events: asyncio.Queue[list[TextDelta] | EarwiseError] = asyncio.Queue()
        self.first_token_at: float | None = None
        self.revision = ""
        self._loop = asyncio.get_running_loop()
        self._sample_streams: list[SampleStream] = []

    def send(self, event: list[TextDelta] | EarwiseError) -> None:
        """Send an event to the route, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: there is no client left
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def sample_streams(
        self, detokenize: Callable[[Sequence[int]], str], eos_ids: Collection[int]
    ) -> list[SampleStream]:
        """One stream per completion. They stay with the request, also when it is sampled again."""
        if not self._sample_streams:
            limit = self.sampling_params.max_new_tokens
            self._sample_streams = [
                SampleStream(sample, detokenize, eos_ids, stop=self.stop, limit=limit, stream=self.stream)
                for sample in range(self.n)
            ]
        return self._sample_streams

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """What the requests of a batch must have in common."""
        return self.sampling_params.temperature, self.sampling_params.top_p, self.sampling_params.top_k, self.n


@dataclass(frozen=True, slots=True)
class ControlTask:
    """Work other than sampling that the model's thread does.

    Attributes:
        work: The function to call.
        future: Receives its result or exception.
        exclusive: Whether it waits until no batch is running, and later requests wait for it. False does it between
            two steps of the running batches.
    """

    work: Callable[[], Any]
    future: Future[Any]
    exclusive: bool = True

    def run(self) -> None:
        """Do the work, unless nobody waits for it any more."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except Exception as error:  # passed on to whoever waits for the result
            self.future.set_exception(error)


def select_batch(
    queue: Sequence[Job | ControlTask], capacity: Capacity, running: Sequence[Sequence[Job]] = ()
) -> list[Job]:
    """The next batch: the first request, and later ones with its batch key that fit, up to the next exclusive task.

    Args:
        queue: What waits, the oldest first.
        capacity: Limits of a batch.
        running: Batches that are running already. Without any, the first request always fits.
    """
    batch: list[Job] = []
    if len(running) >= capacity.max_batches:
        return batch
    running_jobs = [job for jobs in running for job in jobs]
    samples = sum(job.n for job in running_jobs)
    tokens = sum(batch_tokens(jobs) for jobs in running)
    for entry in queue:
        if isinstance(entry, ControlTask):
            if entry.exclusive:
                break
            continue
        if batch and entry.batch_key != batch[0].batch_key:
            continue
        candidate = [*batch, entry]
        fits = (
            samples + sum(job.n for job in candidate) <= capacity.max_samples
            and attention_cells(candidate) <= capacity.max_attention_cells
            and (capacity.max_cache_tokens is None or tokens + batch_tokens(candidate) <= capacity.max_cache_tokens)
        )
        if fits or not (batch or running):
            batch.append(entry)
        elif not batch:
            break  # the oldest request waits for room, and is not overtaken for ever
    return batch


def attention_cells(jobs: Sequence[Job]) -> int:
    """Number of trees of a batch times the square of the largest. Trees are dense, those of one clip as well."""
    sizes = _tree_sizes(jobs)
    return len(sizes) * max(sizes) ** 2


def batch_tokens(jobs: Sequence[Job]) -> int:
    """Tokens of a batch whose keys and values are kept: its trees, padded to the largest, and all completions."""
    sizes = _tree_sizes(jobs)
    return len(sizes) * max(sizes) + sum(job.n * job.sampling_params.max_new_tokens for job in jobs)


def _tree_sizes(jobs: Sequence[Job]) -> list[int]:
    groups = group_prompts([job.prompt_ids for job in jobs], [job.first_clip for job in jobs])
    return [group.size for group in groups]
