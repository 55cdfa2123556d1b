"""One function over many items on several processes: in order, in constant memory, and past items that kill a process.

Under the index of large manifests and the scan of sounds. Items are taken from their iterator only as results are
asked for, a few chunks ahead. Processes are spawned, not forked: the caller may hold threads of torch. A file on which
a decoder crashes (and not just refuses) takes its process down; the chunks that were under way are then run again item
by item, and what crashes again is answered by `on_crash`.
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
AHEAD = 4  # chunks in work or waiting, per process


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int | None = None,
    chunk: int = 16,
    on_crash: Callable[[T], R] | None = None,
) -> Iterator[R]:
    """`map(function, items)` on processes.

    Args:
        function: A module's function, or a `partial` of one.
        items: Any number, taken as needed.
        workers: Processes; None for one per core, 1 for none but this one.
        chunk: Items that travel together; if there are no more than these, no process is started.
        on_crash: The result of an item that killed its process, in place of an error.
    Returns:
        The results, in the order of the items.
    Raises:
        ConfigError: if `workers` or `chunk` is less than 1, or no process can be started.
        BrokenProcessPool: if an item kills its process and there is no `on_crash`.
        Exception: whatever `function` raised first.
    """
    workers = cores() if workers is None else workers
    if workers < 1 or chunk < 1:
        raise ConfigError(f"workers {workers} and chunk {chunk} must be at least 1")
    left = iter(items)
    first = list(islice(left, chunk + 1))
    if workers == 1 or len(first) <= chunk:
        return map(function, chain(first, left))
    return _spread(function, chain(first, left), workers, chunk, on_crash)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spread(
    function: Callable[[T], R], items: Iterator[T], workers: int, chunk: int, on_crash: Callable[[T], R] | None
) -> Iterator[R]:
    waiting: deque[tuple[list[T], Future[list[R]]]] = deque()
    pool = _pool(workers)
    try:
        _check(pool)
        while True:
            while len(waiting) < AHEAD * workers and (some := list(islice(items, chunk))):
                waiting.append((some, _submit(pool, function, some)))
            if not waiting:
                return
            try:
                results = waiting[0][1].result()
            except BrokenProcessPool:
                if on_crash is None:
                    raise
                pool.shutdown(wait=True)
                results = _one_by_one(function, waiting[0][0], on_crash)
                pool = _pool(workers)
                again = [some for some, _ in islice(waiting, 1, None)]
                waiting = deque([waiting[0], *((some, _submit(pool, function, some)) for some in again)])
            waiting.popleft()
            yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], some: list[T]) -> "Future[list[R]]":
    try:
        return pool.submit(_each, function, some)
    except BrokenProcessPool as error:  # it broke before anyone asked for a result: told where the result is asked for
        failed: Future[list[R]] = Future()
        failed.set_exception(error)
        return failed


def _one_by_one(function: Callable[[T], R], some: list[T], on_crash: Callable[[T], R]) -> list[R]:
    """The results of a chunk that may hold the crash; a new process after each one."""
    results, pool = [], _pool(1)
    try:
        for item in some:
            try:
                results += pool.submit(_each, function, [item]).result()
            except BrokenProcessPool:
                pool.shutdown(wait=True)
                pool = _pool(1)
                results.append(on_crash(item))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _check(pool: ProcessPoolExecutor) -> None:
    """A script that starts processes while it is being imported by one is no fault of an item."""
    try:
        pool.submit(cores).result()
    except BrokenProcessPool as error:
        raise ConfigError(
            'processes cannot be started; in a script, call this under `if __name__ == "__main__":`, or say workers 1'
        ) from error


def _each(function: Callable[[T], R], some: list[T]) -> list[R]:
    return [function(item) for item in some]
