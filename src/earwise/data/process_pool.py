"""Maps a function over many items on several processes: in order, in constant memory, and surviving crashed processes.

Used by the index of large manifests and by the scan of audio files. Items are taken from their iterator only as results
are consumed, a few chunks ahead. Processes are spawned, not forked, because the caller may hold threads of torch. A
file on which a decoder crashes (instead of raising) takes its process down; the chunks that were in flight are then run
again item by item, and `on_crash` provides the result of an item that crashes again.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from earwise.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")
CHUNKS_IN_FLIGHT = 4  # submitted chunks per process


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int | None = None,
    chunk: int = 16,
    on_crash: Callable[[T], R] | None = None,
) -> Iterator[R]:
    """`map(function, items)` on several processes.

    Args:
        function: A function defined at the top level of a module, or a `partial` of one.
        items: Any number of items, taken as needed.
        workers: Number of processes; None for one per core, 1 to run in the calling process.
        chunk: Number of items sent to a process at a time. If there are no more items than this, no process is started.
        on_crash: Function that provides the result of an item that killed its process; None raises an error instead.
    Returns:
        The results, in the order of the items.
    Raises:
        ConfigError: if `workers` or `chunk` is less than 1, or no process can be started.
        BrokenProcessPool: if an item kills its process and there is no `on_crash`.
        Exception: the first exception that `function` raises.
    """
    workers = cores() if workers is None else workers
    if workers < 1 or chunk < 1:
        raise ConfigError(f"workers {workers} and chunk {chunk} must be at least 1")
    remaining = iter(items)
    first = list(islice(remaining, chunk + 1))
    if workers == 1 or len(first) <= chunk:
        return map(function, chain(first, remaining))
    return _map_on_processes(function, chain(first, remaining), workers, chunk, on_crash)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map_on_processes(
    function: Callable[[T], R], items: Iterator[T], workers: int, chunk: int, on_crash: Callable[[T], R] | None
) -> Iterator[R]:
    """Keep `CHUNKS_IN_FLIGHT` chunks per process submitted and yield their results in order."""
    pending: deque[tuple[list[T], Future[list[R]]]] = deque()
    pool = _new_pool(workers)
    try:
        _check_pool_starts(pool)
        while True:
            while len(pending) < CHUNKS_IN_FLIGHT * workers and (chunk_items := list(islice(items, chunk))):
                pending.append((chunk_items, _submit(pool, function, chunk_items)))
            if not pending:
                return
            try:
                results = pending[0][1].result()
            except BrokenProcessPool:
                if on_crash is None:
                    raise
                pool.shutdown(wait=True)
                results = _run_item_by_item(function, pending[0][0], on_crash)
                pool = _new_pool(workers)
                resubmitted = [(chunk, _submit(pool, function, chunk)) for chunk, _ in islice(pending, 1, None)]
                pending = deque([pending[0], *resubmitted])
            pending.popleft()
            yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], items: list[T]) -> "Future[list[R]]":
    """Submit a chunk; if the pool is already broken, the returned future raises when its result is requested."""
    try:
        return pool.submit(_apply_to_each, function, items)
    except BrokenProcessPool as error:
        failed: Future[list[R]] = Future()
        failed.set_exception(error)
        return failed


def _run_item_by_item(function: Callable[[T], R], items: list[T], on_crash: Callable[[T], R]) -> list[R]:
    """Results of a chunk that may hold the item that crashed; a new process is started after each crash."""
    results, pool = [], _new_pool(1)
    try:
        for item in items:
            try:
                results += pool.submit(_apply_to_each, function, [item]).result()
            except BrokenProcessPool:
                pool.shutdown(wait=True)
                pool = _new_pool(1)
                results.append(on_crash(item))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


def _new_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _check_pool_starts(pool: ProcessPoolExecutor) -> None:
    """Raise ConfigError if no process starts, as in a script without an `if __name__ == "__main__":` guard."""
    try:
        pool.submit(cores).result()
    except BrokenProcessPool as error:
        raise ConfigError(
            'processes cannot be started; in a script, call this under `if __name__ == "__main__":`, or use workers=1'
        ) from error


def _apply_to_each(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]
