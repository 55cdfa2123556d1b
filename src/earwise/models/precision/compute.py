"""Which precision a CPU computes the products of frozen weights in: float32, bfloat16 where that is faster, or int8.

Processors with AMX or AVX512-BF16 multiply bfloat16 matrices two to six times faster than float32 ones; on others it is
slower. `auto` therefore measures, once per machine and model size, the product of each phase at its shape:

- `encoder`: hundreds of rows (a clip) through the encoder's widest layer;
- `prefill`: hundreds of rows (prompts, and whole trees in training) through the decoder's widest layer;
- `decode`: eight rows, which mostly waits for the weights to be read.

`int8` is for answering only: the decoder's float32 weights go, and it reads a quarter of the bytes. It rounds more than
`auto` may (99 % equal greedy answers), so it has to be asked for.

`apply` changes a loaded model accordingly; what exactly is rounded is told in `models.precision.bfloat16_products` and
`models.precision.int8_products`.
Models that are not float32, or not on a CPU, are left as they are.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from earwise.errors import ModelError
from earwise.files import atomic_write, cache_dir
from earwise.models.base import AudioLM
from earwise.models.cpu_decode.free_memory import release_freed_memory
from earwise.models.precision import bfloat16_products, int8_products

ComputeDtype = Literal["float32", "bfloat16", "int8"]
COMPUTE_CHOICES = ("float32", "bfloat16", "int8", "auto")
"""Values of `--compute`; those of a recipe's `model.compute` are the same without int8."""
WORTHWHILE = 1.2
"""How much faster bfloat16 must be to be chosen: rounding buys nothing else."""
MANY_ROWS, FEW_ROWS = 256, 8
PROBE_BYTES = 48 * 2**20
"""Float32 bytes of the weights that a probe multiplies with in turn, so that they do not all stay in the caches."""
_MARK = "earwise_compute_plan"


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """The precision of each phase; see above.

    Attributes:
        encoder: Precision of the encoder's linear layers.
        prefill: Precision of the decoder's linear layers for many rows: prompts, scoring, training.
        decode: Precision of the decoder's linear layers and output head for few rows.
    """

    encoder: ComputeDtype = "float32"
    prefill: ComputeDtype = "float32"
    decode: ComputeDtype = "float32"

    def __str__(self) -> str:
        phases: dict[str, ComputeDtype] = asdict(self)
        if len(set(phases.values())) == 1:
            return self.encoder
        return ", ".join(f"{phase} {dtype}" for phase, dtype in phases.items())


FLOAT32 = ComputePlan()
BFLOAT16 = ComputePlan("bfloat16", "bfloat16", "bfloat16")
INT8 = ComputePlan("float32", "int8", "int8")


def set_compute(model: AudioLM, choice: str) -> ComputePlan:
    """Choose the precision of a model's products and change the model accordingly, in place.

    Args:
        model: A loaded model.
        choice: One of `COMPUTE_CHOICES`; `auto` measures on this machine, once.
    Returns:
        What was chosen; `float32` for models on other devices or in other dtypes, which compute in their own.
    Raises:
        ModelError: if the choice is unknown, or `bfloat16` or `int8` is asked for where it cannot act.
    """
    if choice not in COMPUTE_CHOICES:
        raise ModelError(f"compute {choice!r} is none of {', '.join(COMPUTE_CHOICES)}")
    if plan_of(model.module) == INT8:
        if choice == "int8":
            return INT8
        raise ModelError(f"{model.name} is in int8, its float32 weights are gone; load it again for compute {choice}")
    shapes = {phase: _widest_layer(model, part) for phase, part in (("encoder", "encoder"), ("decoder", "decoder"))}
    if choice in ("bfloat16", "int8") and shapes["decoder"] is None:
        raise ModelError(
            f"compute {choice} is for float32 weights on a CPU, and {model.name} has none; leave compute at float32, "
            "and choose the dtype of the weights instead"
        )
    if choice == "float32" or shapes["decoder"] is None:
        plan = FLOAT32
    elif choice == "auto":
        plan = _measured_plan(shapes["encoder"], shapes["decoder"])
    else:
        plan = BFLOAT16 if choice == "bfloat16" else INT8
    apply(model, plan)
    return plan


def apply(model: AudioLM, plan: ComputePlan) -> None:
    """Change the products of a model's frozen layers to the precisions of a plan; decoding reads it by `plan_of`. Only
    int8 is for good."""
    bfloat16_products.uninstall(model.module)
    setattr(model.module, _MARK, plan)
    if plan.encoder == "bfloat16":
        bfloat16_products.install(model.module, model.parameter_prefixes["encoder"])
    if plan.prefill == "bfloat16":
        bfloat16_products.install(model.module, model.parameter_prefixes["decoder"][:1])
    if plan.prefill == "int8":
        int8_products.install(model.module, model.parameter_prefixes["decoder"][:1])
        for parameter in model.module.parameters():
            parameter.data = parameter.data.clone()  # one tensor mapped from a weights file keeps all of it in memory
        release_freed_memory()


def plan_of(module: nn.Module) -> ComputePlan:
    """The plan that `apply` has put into effect; float32 in all phases for any other module."""
    plan: ComputePlan = getattr(module, _MARK, FLOAT32)
    return plan


def _widest_layer(model: AudioLM, part: str) -> tuple[int, int] | None:
    """Shape `(out, in)` of the widest frozen float32 linear layer of a part on the CPU; None if there is none. Of the
    decoder's prefixes only the first counts, as the others are the output head."""
    prefixes = model.parameter_prefixes[part][:1] if part == "decoder" else model.parameter_prefixes[part]
    shapes = [
        (layer.out_features, layer.in_features)
        for name, layer in model.module.named_modules()
        if f"{name}.".startswith(prefixes) and isinstance(layer, nn.Linear) and bfloat16_products.is_suitable(layer)
    ]
    return max(shapes, key=lambda shape: shape[0] * shape[1], default=None)


def _measured_plan(encoder: tuple[int, int] | None, decoder: tuple[int, int] | None) -> ComputePlan:
    """The faster precision of each phase on this machine, from the cache or measured now."""
    path = cache_dir() / "compute.json"
    key = f"{_processor()} x{torch.get_num_threads()} torch {torch.__version__} encoder {encoder} decoder {decoder}"
    known = _read(path)
    if key in known:
        return ComputePlan(**known[key])
    plan = ComputePlan(
        encoder=_faster(encoder, MANY_ROWS), prefill=_faster(decoder, MANY_ROWS), decode=_faster(decoder, FEW_ROWS)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        json.dump(known | {key: asdict(plan)}, file, indent=1)
    return plan


def _faster(shape: tuple[int, int] | None, rows: int) -> ComputeDtype:
    """The precision in which a product of this many rows is clearly faster here; float32 without a layer."""
    if shape is None or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "float32"
    generator = torch.Generator().manual_seed(0)
    copies = max(1, PROBE_BYTES // (4 * shape[0] * shape[1]))
    weight = torch.randn(shape, generator=generator)
    x = torch.randn(rows, shape[1], generator=generator)
    weights = [weight.clone() for _ in range(copies)]
    packed = [bfloat16_products.multiplication(weight.bfloat16()) for _ in range(copies)]

    def in_float32() -> list[Tensor]:
        return [functional.linear(x, weight) for weight in weights]

    def in_bfloat16() -> list[Tensor]:
        return [multiply(x.bfloat16()).float() for multiply in packed]

    return "bfloat16" if _seconds(in_float32) > WORTHWHILE * _seconds(in_bfloat16) else "float32"


@torch.inference_mode()
def _seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The shortest of a few times that some work takes; the first run is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


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
