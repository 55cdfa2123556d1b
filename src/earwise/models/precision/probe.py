"""Measures which precision is faster for the products of each phase on this machine, once, and keeps the answer.

A phase is a number of rows times the widest weight of a part: hundreds of rows where clips are heard and prompts are
read (and trees are trained on), eight where tokens are decoded, which mostly waits for the weights to be read. The
products of both precisions are timed in turn, and the shortest time of each counts, so that other work on the machine
does not decide. The choice is kept in `compute.json` of the cache folder, by processor, torch and number of threads.

int8 is not a candidate. Its products are the fastest of all here, but it changes more answers than a choice that nobody
asked for may (`benchmarks/compute.py`, docs/how-to/bfloat16-on-a-cpu.md).
"""

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from earwise.files import atomic_write, cache_dir
from earwise.models.precision import bfloat16_products

Phase = Literal["encoder", "prefill", "decode"]
ROWS: Mapping[Phase, int] = {"encoder": 256, "prefill": 256, "decode": 8}
"""Rows of the product that stands for each phase."""
PROBE_BYTES: Mapping[Phase, int] = {"encoder": 0, "prefill": 0, "decode": 32 * 2**20}
"""Float32 bytes of the weights that a probe multiplies with in turn: in decoding they must not all stay in the caches;
with hundreds of rows one weight is enough."""
WORTHWHILE = 1.2
"""How much faster bfloat16 must be to be chosen: rounding buys nothing else."""
SMALLEST_WEIGHT = 2**17
"""Numbers in the widest weight of a model from which a choice is worth its probe."""
Shapes = Mapping[Phase, tuple[int, int] | None]
"""Phase -> shape `(out, in)` of its widest weight; None without one in float32 on the CPU."""
Times = Mapping[Literal["float32", "bfloat16"], float]
"""Precision -> seconds of a product; a machine without kernels for bfloat16 has only those of float32."""
Probe = Callable[[Phase, tuple[int, int]], Times]


def faster_precisions(
    shapes: Shapes, probe: Probe | None = None, path: Path | None = None
) -> dict[Phase, Literal["float32", "bfloat16"]]:
    """The precision of each phase on this machine, from the file or measured now.

    Args:
        shapes: The widest weight of each phase.
        probe: Times the products of a phase; None is `measure`.
        path: File of the choices; None is that in the cache folder.
    """
    path = cache_dir() / "compute.json" if path is None else path
    key = f"{_processor()} x{torch.get_num_threads()} torch {torch.__version__} {_described(shapes)}"
    known = _read(path)
    if key not in known:
        chosen = {phase: _faster(phase, shape, probe or measure) for phase, shape in shapes.items()}
        known = known | {key: chosen}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            json.dump(known, file, indent=1)
    return {phase: known[key][phase] for phase in shapes}


def _faster(phase: Phase, shape: tuple[int, int] | None, probe: Probe) -> Literal["float32", "bfloat16"]:
    """bfloat16 where it is clearly faster; float32 for small weights, or without any."""
    if shape is None or shape[0] * shape[1] < SMALLEST_WEIGHT:
        return "float32"
    times = probe(phase, shape)
    return "bfloat16" if times["float32"] > WORTHWHILE * times.get("bfloat16", float("inf")) else "float32"


def measure(phase: Phase, shape: tuple[int, int]) -> Times:
    """Seconds of a phase's products with weights of a shape, on this machine."""
    generator = torch.Generator().manual_seed(0)
    copies = max(1, PROBE_BYTES[phase] // (4 * shape[0] * shape[1]))
    weight = torch.randn(shape, generator=generator)
    x = torch.randn(ROWS[phase], shape[1], generator=generator)
    weights = [weight, *(weight.clone() for _ in range(copies - 1))]
    works: dict[Literal["float32", "bfloat16"], Callable[[], Any]] = {
        "float32": lambda: [functional.linear(x, weight) for weight in weights]
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = [bfloat16_products.multiplication(weight.bfloat16()) for weight in weights]

        def in_bfloat16() -> list[Tensor]:
            return [multiply(x.bfloat16()).float() for multiply in packed]

        works["bfloat16"] = in_bfloat16
    return shortest_times(works)


@torch.inference_mode()
def shortest_times(
    works: Mapping[Literal["float32", "bfloat16"], Callable[[], Any]], rounds: int = 3
) -> dict[Literal["float32", "bfloat16"], float]:
    """The shortest of a few times that each work takes, run in turn; the first round is not counted."""
    best = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
            best[name] = min(best[name], seconds) if number else best[name]
    return best


def _described(shapes: Shapes) -> str:
    """The shapes as a part of the key."""
    return " ".join(f"{phase} {'x'.join(map(str, shape)) if shape else 'none'}" for phase, shape in shapes.items())


def _processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags"))]
    # The flags say whether bfloat16 units are there, which the name of a virtual processor does not.
    units = [unit for unit in ("avx512f", "avx512_bf16", "amx_bf16") if names and unit in names[-1].split()]
    return " ".join([names[0] if len(names) > 1 else platform.processor() or platform.machine(), *units])


def _read(path: Path) -> dict[str, Any]:
    """What was measured before; empty if there is nothing that can be read."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
