"""Training in several processes: which process computes what, and the collective operations between them.

Processes are started by `accelerate launch` or `torchrun`; a single process runs through everything here unchanged.
Every process draws the same step (all draws are seeded), computes its share of the trees, and samples completions for
its share of the prompts. Rewards are gathered, so advantages are those of the whole step. Losses are divided by counts
of the whole step, so summing gradients over processes gives what one process would have computed. They are summed once
per step, after the last micro-batch (`all_reduce_gradients`), because processes may have different numbers of
micro-batches, of different kinds, or none.

Every collective operation must be called by all processes in the same order.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from earwise.errors import ConfigError, EngineError

T = TypeVar("T")
LauncherEngine = Literal["ddp", "fsdp2"]
PROCESS_GROUP_TIMEOUT = timedelta(hours=12)
"""How long processes wait while the first one evaluates or writes. A process that dies is noticed at once."""
BUCKET_BYTES = 64 * 2**20
"""Gradients are reduced in buckets of about this size."""


def on_cpu() -> bool:
    """Whether training runs on a CPU: because there is no GPU, or because `accelerate launch --cpu` asks for it."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()


def init_processes() -> None:
    """Join the process group that this process was launched in; a single process does nothing.

    Raises:
        ConfigError: if the launcher asks for an engine that is not supported or for mixed precision, or started one
            process instead of several.
        EngineError: if the processes do not find each other.
    """
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() not in ("no", ""):
        raise ConfigError(
            f"the launcher asks for mixed_precision {os.environ['ACCELERATE_MIXED_PRECISION']}, but dtypes are the "
            "recipe's (model.dtype: bfloat16 computes in it and keeps float32 masters); launch with mixed_precision: no"
        )
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        raise ConfigError(
            "`accelerate launch --cpu` starts one process only, whatever --num_processes says; "
            "launch with --config_file $(earwise recipe --path ddp) --num_processes N, or torchrun --nproc-per-node N"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    launcher_engine()
    from accelerate import PartialState

    with _communication():
        PartialState(cpu=on_cpu(), timeout=PROCESS_GROUP_TIMEOUT)


def leave_processes() -> None:
    """Leave the process group, once all processes have come here."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def launcher_engine() -> LauncherEngine:
    """The engine that the launcher's configuration asks for (`earwise/recipes/engines/*.yaml`).

    Raises:
        ConfigError: for DeepSpeed, whose hooks require the same calls in the same order from every process, and for
            FSDP's first version or its offloading.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError(
            "DeepSpeed waits for calls that a process without audio or trees does not make; use FSDP2, which shards in "
            "the same way: the configuration fsdp2 for ZeRO-3, fsdp2-zero2 for ZeRO-2 (earwise recipe --path NAME)"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ConfigError("FSDP's first version is not supported; set fsdp_version: 2 in fsdp_config")
        if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
            raise ConfigError("fsdp_offload_params is not supported; leave it out, or train with LoRA")
        return "fsdp2"
    return "ddp"


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes files and prints: process 0."""
    return rank() == 0


def assigned_items(sizes: Sequence[float]) -> list[int]:
    """Indices of the items that this process computes, ascending.

    Args:
        sizes: Size of each item, the same list in every process. Each item is assigned to exactly one process.
    """
    return balance(sizes, world_size())[rank()]


def balance(sizes: Sequence[float], parts: int) -> list[list[int]]:
    """Distribute items over parts of about equal total size: the largest first, always to the smallest part.

    Returns:
        The item indices of each part, ascending.

    >>> balance([5, 3, 3, 1], 2)
    [[0, 3], [1, 2]]
    """
    indices: list[list[int]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for item in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        smallest = min(range(parts), key=loads.__getitem__)
        indices[smallest].append(item)
        loads[smallest] += sizes[item]
    return [sorted(items) for items in indices]


def all_gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    with _communication():
        dist.all_gather_object(values, value)
    return values


def gather_assigned(indices: Sequence[int], values: Sequence[T]) -> list[T]:
    """The values of all items in order, where each process holds those of its `assigned_items`.

    Args:
        indices: Indices of the items of this process.
        values: Value of each of them.
    """
    pairs = [pair for part in all_gather(list(zip(indices, values, strict=True))) for pair in part]
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def all_sum(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over processes by name; a name that a process does not have counts as 0 there."""
    parts = all_gather(dict(values))
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def any_process(flag: bool) -> bool:
    """Whether the flag is true in at least one process; the result is the same in all."""
    return any(all_gather(flag))


def barrier() -> None:
    """Wait until all processes have come here."""
    all_gather(None)


@torch.no_grad()
def all_reduce_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum gradients over processes, in place.

    A parameter without a gradient in some processes counts as 0 there; without one in any process it stays without, as
    it would in a single process.
    """
    if world_size() == 1 or not parameters:
        return
    device = parameters[0].device
    has_gradient = torch.tensor(
        [parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device
    )
    with _communication():
        dist.all_reduce(has_gradient, op=dist.ReduceOp.MAX)
    used = [parameter for parameter, flag in zip(parameters, has_gradient.tolist(), strict=True) if flag]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        with _communication():
            dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group gradients of one dtype, in order, into buckets of about `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    for gradient in sorted(gradients, key=lambda tensor: str(tensor.dtype)):
        full = sum(tensor.nbytes for tensor in bucket) >= BUCKET_BYTES
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def _communication() -> Iterator[None]:
    """Turn the communication library's long errors into an EngineError of one line."""
    try:
        yield
    except RuntimeError as error:
        message = " ".join(str(error).split())[:160]
        raise EngineError(
            f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')} lost the others "
            f"({message}); start all of them again with --resume"
        ) from error
