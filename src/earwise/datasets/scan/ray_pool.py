"""Maps a function over many items on a Ray cluster, with the same order and results as `data/process_pool.py`.

Used by `scan/clip_stats.py` for `backend="ray"` (needs the extra `ray`). The driver passes `BLOCK_SIZE` items at a time
to Ray Data, so its memory does not grow with the collection; all nodes must have access to the files. The cluster is
the one that `RAY_ADDRESS` names or that is already initialised; otherwise Ray starts on this machine. A file that kills
the process that decodes it ends the scan (Ray retries it, then raises): leave it out, or scan with `--engine
processes`.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from earwise.errors import ConfigError, EngineError

T = TypeVar("T")
R = TypeVar("R")
BLOCK_SIZE = 10_000  # items passed to Ray Data at a time
BATCH_SIZE = 16  # items per task


def ray_map(function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """`map(function, items)` on Ray Data.

    Args:
        function: Function at the top level of a module that is installed on every node, or a `partial` of one.
        items: Any number of items, taken as needed.
        workers: Number of concurrent tasks; None for one per core of the cluster.
    Returns:
        The results, in the order of the items.
    Raises:
        ConfigError: if Ray is not installed.
        EngineError: if Ray does not start.
    """
    try:
        import ray
        from ray.data import DataContext
    except ImportError as error:
        raise ConfigError('the ray backend needs Ray: pip install "earwise[ray]", or use processes') from error
    if not ray.is_initialized():
        num_cpus = None if "RAY_ADDRESS" in os.environ else workers  # an existing cluster has its own number of cores
        try:
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING, num_cpus=num_cpus)
        except Exception as error:  # Ray raises nothing narrower when a node is too slow to start
            raise EngineError(f"Ray does not start ({error}); see its logs, or use processes") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    return _map_blocks(ray.data, function, iter(items), ray.data.TaskPoolStrategy(size=workers))


def _map_blocks(data: Any, function: Callable[[T], R], items: Iterator[T], compute: Any) -> Iterator[R]:
    """Map block by block; `data` is the module `ray.data`, `compute` its strategy for running tasks."""

    def map_batch(batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(function(pickle.loads(item))) for item in batch["item"]]}

    while block := [{"item": pickle.dumps(item)} for item in islice(items, BLOCK_SIZE)]:
        results = data.from_items(block).map_batches(map_batch, batch_size=BATCH_SIZE, compute=compute)
        for row in results.iter_rows():
            yield pickle.loads(row["result"])
