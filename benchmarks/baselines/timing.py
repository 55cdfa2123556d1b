"""Timing for benchmarks: alternatives run in turn on one machine, so that its varying load affects all of them alike.

Each alternative runs once to warm up, then once per round, in an order that is reversed every other round. Reported are
medians over rounds and, for two alternatives, the median of the rounds' ratios. Memory is the peak of a fresh process,
since an allocator keeps memory that was used earlier; therefore torch is imported only where it is needed.
"""

import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def machine() -> dict[str, Any]:
    """A description of this machine, its software and its current load, stored with results."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of this clone, with `-changed` if files differ from it; None outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    name = git("rev-parse", "--short", "HEAD")
    code = (":/src", ":/benchmarks/*.py")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return (name + ("-changed" if changed else "")) or None


def matmul_gflops(size: int = 2048, repeats: int = 5) -> float:
    """Rate of float32 matrix products on this machine in GFLOP/s (median, after a warm-up run)."""
    import torch

    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return 2 * size**3 / statistics.median(alternate({"matmul": lambda: a @ a}, repeats)["matmul"]) / 1e9


def stream_gbs(megabytes: int = 256, repeats: int = 5) -> float:
    """Rate of reading weights on this machine in GB/s, by matrix-vector products (median, after a warm-up run)."""
    import torch

    weight = torch.ones(megabytes * 2**20 // 4 // 1024, 1024)
    x = torch.ones(1024)
    return weight.nbytes / statistics.median(alternate({"read": lambda: weight @ x}, repeats)["read"]) / 1e9


class PhaseTimer:
    """Adds up the wall seconds of the named phases of one run: `with timer("loss"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def alternate(
    alternatives: Mapping[str, Callable[[], object]], pairs: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Wall seconds of every alternative in every round.

    Args:
        alternatives: Functions to run, by name.
        pairs: Number of rounds; every alternative runs once per round.
        warm_up: True runs each alternative once before the first round.
    """

    def timed_as_one_phase(run: Callable[[], object]) -> Callable[[PhaseTimer], None]:
        def timed(timer: PhaseTimer) -> None:
            with timer("all"):
                run()

        return timed

    times = alternate_phases(
        {name: timed_as_one_phase(run) for name, run in alternatives.items()}, pairs, warm_up=warm_up
    )
    return {name: phases["all"] for name, phases in times.items()}


def alternate_phases(
    alternatives: Mapping[str, Callable[[PhaseTimer], object]], pairs: int, *, warm_up: bool = True
) -> dict[str, dict[str, list[float]]]:
    """Like `alternate`, for alternatives that report the time of their phases.

    Returns:
        Alternative -> phase -> seconds in each round.
    """
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; a median needs at least one round")
    if warm_up:
        for run in alternatives.values():
            run(PhaseTimer())
    times: dict[str, dict[str, list[float]]] = {name: {} for name in alternatives}
    for number in range(pairs):
        for name in list(alternatives) if number % 2 == 0 else list(alternatives)[::-1]:
            timer = PhaseTimer()
            alternatives[name](timer)
            for phase, seconds in timer.seconds.items():
                times[name].setdefault(phase, []).append(seconds)
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of each list, by name."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over rounds of slow / fast: how many times faster the second alternative is."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def peak_memory(function: Callable[[], object]) -> float:
    """Peak memory in MB of a fresh process that runs only one function, with the imports that it needs.

    Args:
        function: Function of a module, or a `functools.partial` of one, since the process imports it by name.
    Raises:
        RuntimeError: if the process fails; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(function, sender))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError as error:
        process.join()
        raise RuntimeError(f"the process that measures memory ended with code {process.exitcode}") from error
    finally:
        process.join()


def high_water_mb() -> float:
    """Peak memory of this process so far, in MB."""
    for line in _lines(STATUS):
        # Not getrusage: on Linux, a new process inherits the peak of its parent there.
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1024**2 if sys.platform == "darwin" else 1024)


def _send_peak(function: Callable[[], object], sender: Any) -> None:
    """Run a function and send the peak memory of this process."""
    function()
    sender.send(high_water_mb())


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
