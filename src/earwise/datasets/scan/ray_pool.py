"""The map functions of a scan on a Ray cluster: the same functions, the same order, the same results as on processes.

Called by `build/decode_pool.py` for `engine="ray"` (extra `ray`). The driver hands out `BLOCK` items at a time to Ray
Data, so its memory does not grow with the collection; files must lie where every node sees them. A cluster is the one
that `RAY_ADDRESS` names or that is up already, else Ray starts on this machine. A file that kills its process fails the
scan here (Ray tries it again, then raises): leave it out by `--engine processes` on that block.
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
BLOCK = 10_000
BATCH = 16


def ray_map(function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """`map(function, items)` on Ray Data.

    Args:
        function: A module's function that is installed on every node, or a `partial` of one.
        items: Any number, taken as needed.
        workers: Tasks at a time; None for as many as the cluster has cores.
    Returns:
        The results, in the order of the items.
    Raises:
        ConfigError: if Ray is not installed.
        EngineError: if it does not start.
    """
    try:
        import ray
        from ray.data import DataContext
    except ImportError as error:
        raise ConfigError('engine ray needs Ray: pip install "earwise[ray]", or use engine processes') from error
    if not ray.is_initialized():
        own = None if "RAY_ADDRESS" in os.environ else workers  # a cluster that is named knows its cores
        try:
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING, num_cpus=own)
        except Exception as error:  # Ray raises nothing narrower when a node is too slow to start
            raise EngineError(f"Ray does not start ({error}); see its logs, or use engine processes") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    return _blocks(ray.data, function, iter(items), ray.data.TaskPoolStrategy(size=workers))


def _blocks(data: Any, function: Callable[[T], R], items: Iterator[T], compute: Any) -> Iterator[R]:
    def work(batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(function(pickle.loads(item))) for item in batch["item"]]}

    while block := [{"item": pickle.dumps(item)} for item in islice(items, BLOCK)]:
        done = data.from_items(block).map_batches(work, batch_size=BATCH, compute=compute)
        for row in done.iter_rows():
            yield pickle.loads(row["result"])
