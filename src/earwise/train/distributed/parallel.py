"""Several processes train one model: who takes which trees, and what they tell each other.

Started by `accelerate launch` or `torchrun`; a process alone passes through all of this unchanged. Every process draws
the same step (all draws are seeded), takes its share of the trees, and samples for its share of the prompts; verdicts
are gathered, so that advantages are those of the whole step. Losses are divided by counts of the whole step, so
gradients add up over processes to what one process would have had. They are added once, after the last micro batch
(`add_gradients`): processes may have different numbers of micro batches, of different kinds, or none.

Every function that talks to the others must be called by all of them, in the same order.
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
Engine = Literal["ddp", "fsdp2"]
PATIENCE = timedelta(hours=12)
"""Others wait so long while the first process measures or writes; a process that dies is noticed at once."""
BUCKET_BYTES = 64 * 2**20
"""Gradients are added in pieces of about this size."""


def on_cpu() -> bool:
    """Whether training takes place on a CPU: there is nothing else, or `accelerate launch --cpu` says so."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()


def begin() -> None:
    """Join the processes that this one was started with; alone, do nothing.

    Raises:
        ConfigError: if the launcher's engine is not one that we run, or it started a single process for several.
        EngineError: if they do not find each other.
    """
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        raise ConfigError(
            "`accelerate launch --cpu` starts one process only, whatever --num_processes says; "
            "launch with --config_file recipes/engines/ddp.yaml --num_processes N, or torchrun --nproc-per-node N"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    engine()
    from accelerate import PartialState

    with _contact():
        PartialState(cpu=on_cpu(), timeout=PATIENCE)


def end() -> None:
    """Leave the other processes, once all of them are done."""
    if dist.is_initialized():
        wait()
        dist.destroy_process_group()


def engine() -> Engine:
    """What the launcher's configuration asks for (`recipes/engines/*.yaml`).

    Raises:
        ConfigError: for DeepSpeed, whose hooks want the same calls in the same order from every process, and for FSDP's
            first version or its offloading.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError(
            "DeepSpeed waits for calls that a process without sounds or trees does not make; the same cuts with FSDP2: "
            "recipes/engines/fsdp2.yaml for ZeRO-3, fsdp2-zero2.yaml for ZeRO-2"
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


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def share(sizes: Sequence[float]) -> list[int]:
    """This process's share of items, as numbers in order; the same sizes everywhere give each item to one process.

    The largest goes first, to whoever has least.
    """
    return split(sizes, world())[rank()]


def split(sizes: Sequence[float], parts: int) -> list[list[int]]:
    """Items to parts of about equal size.

    >>> split([5, 3, 3, 1], 2)
    [[0, 3], [1, 2]]
    """
    out: list[list[int]] = [[] for _ in range(parts)]
    load = [0.0] * parts
    for item in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        least = min(range(parts), key=load.__getitem__)
        out[least].append(item)
        load[least] += sizes[item]
    return [sorted(items) for items in out]


def gather(value: T) -> list[T]:
    """Every process's value, by number of the process."""
    if world() == 1:
        return [value]
    out: list[T] = [value] * world()
    with _contact():
        dist.all_gather_object(out, value)
    return out


def joined(own: Sequence[int], values: Sequence[T]) -> list[T]:
    """All items in order, where each process has those of its `share`."""
    found = [pair for pairs in gather(list(zip(own, values, strict=True))) for pair in pairs]
    return [value for _, value in sorted(found, key=lambda pair: pair[0])]


def total(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over processes by name; a name that a process lacks counts as 0 there."""
    parts = gather(dict(values))
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def agreed(flag: bool) -> bool:
    """True everywhere if it is true in any process."""
    return any(gather(flag))


def wait() -> None:
    """Go on when all processes have come here."""
    gather(None)


@torch.no_grad()
def add_gradients(parameters: Sequence[Tensor]) -> None:
    """Add gradients over processes, in place. A parameter without one in some processes counts as 0 there, without one
    in all of them stays without, as in one process."""
    if world() == 1 or not parameters:
        return
    device = parameters[0].device
    has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device)
    with _contact():
        dist.all_reduce(has, op=dist.ReduceOp.MAX)
    used = [parameter for parameter, some in zip(parameters, has.tolist(), strict=True) if some]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        with _contact():
            dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type, in order, about `BUCKET_BYTES` at a time."""
    bucket: list[Tensor] = []
    for gradient in sorted(gradients, key=lambda one: str(one.dtype)):
        full = sum(one.nbytes for one in bucket) >= BUCKET_BYTES
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def _contact() -> Iterator[None]:
    """Say in one line what the communication library says in many."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())[:160]
        raise EngineError(
            f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')} lost the others ({said}); "
            "start all of them again with --resume"
        ) from error
