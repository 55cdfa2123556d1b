"""Whether the stages of a recipe fit into a machine's memory: rows for `earwise train --plan`. No torch.

The model, the stages and the machine come in as plain values, so that a plan can be made for any of them. Each stage
class in `training/stages/` says itself what it keeps in memory (`stage_memory.py`); the sums are those of
`estimate.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from earwise.config.stages import StageConfig
from earwise.models.memory.estimate import (
    ASSUMED_CLIP_S,
    BYTES,
    PROMPT_TEXT_TOKENS,
    MemoryEstimate,
    free_memory,
    trained_parameters,
    training_memory,
)
from earwise.models.memory.fitting import Settings, fitting_change
from earwise.models.memory.sizes import ModelSizes
from earwise.models.memory.stage_memory import StageMemory

GB = 1e9
ALLOCATOR_FACTOR = 1.4
"""Memory that a process on a CPU takes per byte that is used, with the allocator's overhead; measured, see
`docs/reference/models.md`."""
GPU_FACTOR = 1.1
"""The same for a GPU, whose allocator keeps freed blocks for later use; assumed, not measured."""


MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0 + 2 * 4 / 256}
"""Optimizer -> bytes of its state for one trained parameter: two moments, in 8 bits with one scale for 256 of them."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a recipe.

    Attributes:
        config: Its settings.
        memory: What it keeps in memory in each process.
        rows: Manifest -> number of rows that it trains on.
    """

    config: StageConfig
    memory: StageMemory
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the recipe would be trained.

    Attributes:
        name: What the memory belongs to, for messages.
        free_bytes: Free memory; None if it is not known.
        is_gpu: True if every process has a GPU of its own, False if all share the machine's memory.
        processes: Number of processes that train together.
        engine: How they share the weights: `ddp` or `fsdp2`.
        compute: Precision of products with frozen float32 weights, if it is a CPU (`model.compute`).
    """

    name: str
    free_bytes: float | None
    is_gpu: bool
    processes: int = 1
    engine: str = "ddp"
    compute: str = "float32"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage would train and need.

    Attributes:
        stage: Number and name of the stage.
        steps: Number of optimizer steps.
        rows: Manifest -> number of rows.
        parameters: Number of parameters of the model.
        trained: Number of trained parameters by part of the model, and of `all`.
        memory_gb: Gigabytes at the largest moment, by what they hold, in each process.
        peak_gb: Their sum.
        dominates: What holds most.
        needed_gb: The peak with the allocator's overhead, of all processes that share the memory.
        margin_gb: What then remains of the machine's memory, negative if it does not fit; None if it is not known.
        fits: Whether it fits into the machine; None if its free memory is not known.
        advice: The smallest change of settings that makes it fit; "" if it fits.
    """

    stage: str
    steps: int
    rows: Mapping[str, int]
    parameters: int
    trained: Mapping[str, int]
    memory_gb: Mapping[str, float]
    peak_gb: float
    dominates: str
    needed_gb: float
    margin_gb: float | None
    fits: bool | None
    advice: str

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)


def this_machine(processes: int = 1, engine: str = "ddp") -> Machine:
    """Where a model would be trained here, with its free memory: the GPU if there is one."""
    import torch

    if torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), free_memory("cuda"), True, processes, engine)
    return Machine("this machine's memory", free_memory(), False, processes, engine)


def plan_stages(
    sizes: ModelSizes, stages: Sequence[PlannedStage], machine: Machine, *, dtype: str | None = None
) -> list[StagePlan]:
    """The plan of each stage.

    Args:
        sizes: Sizes of the model that the recipe starts from.
        stages: The recipe's stages in order.
        machine: Where it would be trained.
        dtype: Dtype of the weights; None is the published one.
    """
    return [_plan_stage(number, sizes, stage, machine, dtype) for number, stage in enumerate(stages)]


def _plan_stage(number: int, sizes: ModelSizes, stage: PlannedStage, machine: Machine, dtype: str | None) -> StagePlan:
    config = stage.config
    estimate = process_memory(sizes, stage, machine, dtype=dtype)
    needed_bytes = _needed_bytes(sizes, stage, machine, dtype)
    margin = None if machine.free_bytes is None else machine.free_bytes - needed_bytes
    fits = None if margin is None else margin >= 0
    trained = trained_parameters(sizes, config.trainable)
    return StagePlan(
        stage=f"{number} {config.label}",
        steps=config.max_steps,
        rows=stage.rows,
        parameters=sizes.parameters,
        trained=trained | {"all": sum(trained.values())},
        memory_gb={name: round(size / GB, 3) for name, size in estimate.parts.items()},
        peak_gb=round(estimate.peak / GB, 3),
        dominates=estimate.largest_part,
        needed_gb=round(needed_bytes / GB, 3),
        margin_gb=None if margin is None else round(margin / GB, 3),
        fits=fits,
        advice=_advice(sizes, stage, machine, dtype) if fits is False else "",
    )


def _advice(sizes: ModelSizes, stage: PlannedStage, machine: Machine, dtype: str | None) -> str:
    """What to change in a stage that does not fit; see `fitting.fitting_change`."""

    def needed(settings: Settings) -> float:
        changed_stage = replace(stage, config=settings.config)
        return _needed_bytes(settings.sizes, changed_stage, replace(machine, engine=settings.engine), settings.dtype)

    settings = Settings(stage.config, sizes, dtype, machine.engine)
    return fitting_change(settings, machine.processes, machine.free_bytes or 0.0, needed)


def _needed_bytes(sizes: ModelSizes, stage: PlannedStage, machine: Machine, dtype: str | None) -> float:
    """Bytes that all processes which share the machine's memory take, with the allocator's overhead."""
    peak = process_memory(sizes, stage, machine, dtype=dtype).peak
    return peak * GPU_FACTOR if machine.is_gpu else peak * machine.processes * ALLOCATOR_FACTOR


def process_memory(
    sizes: ModelSizes, stage: PlannedStage, machine: Machine, *, dtype: str | None = None
) -> MemoryEstimate:
    """Memory of a stage in one of several processes.

    Under `fsdp2` each process holds its share of the decoder's layers, with their gradients and optimizer state. A
    stage that decodes while it makes batches (for completions or a reference) gathers all layers in every process
    meanwhile.
    """
    config = stage.config
    memory = replace(stage.memory, moment_bytes=MOMENT_BYTES[config.optimizer.optim])
    estimate = training_memory(
        sizes, config.trainable, memory, dtype=dtype, pack_tokens=_pass_tokens(sizes, stage),
        gradient_checkpointing=config.gradient_checkpointing, cpu=not machine.is_gpu, compute=machine.compute,
    )  # fmt: skip
    if machine.engine != "fsdp2" or machine.processes == 1:
        return estimate
    return _sharded(estimate, sizes, stage, machine, BYTES[dtype or sizes.dtype])


def _pass_tokens(sizes: ModelSizes, stage: PlannedStage) -> int:
    """Tokens of the largest forward pass: a tree of completions that is larger than a pack gets a pass of its own."""
    rollout = stage.memory.rollout
    if rollout is None:
        return stage.config.pack_tokens
    prompt_tokens = round(sizes.encoded_s(ASSUMED_CLIP_S) * sizes.audio_tokens_per_s) + PROMPT_TEXT_TOKENS
    return max(stage.config.pack_tokens, prompt_tokens + rollout.group_size * rollout.max_new_tokens)


def _sharded(
    estimate: MemoryEstimate, sizes: ModelSizes, stage: PlannedStage, machine: Machine, number_bytes: int
) -> MemoryEstimate:
    """The estimate of one process that holds its share of the decoder's layers.

    Layers that are trained in full are float32, masters and weights in one, and are gathered in the dtype that they
    compute in.
    """
    elsewhere = 1 - 1 / machine.processes  # share of the layers that other processes hold
    shape, trainable = sizes.decoder_shape, stage.config.trainable
    if shape.experts:
        layer_parameters = max(0, sizes.decoder - 2 * shape.vocabulary * shape.width)
    else:
        layer_parameters = shape.parameters_in_layers
    layer_bytes = float(number_bytes * layer_parameters)
    in_full = trainable.decoder == "full"
    trained = layer_parameters if in_full else trained_parameters(sizes, trainable)["decoder"]
    permanent = dict(estimate.permanent)
    permanent["weights"] -= layer_bytes if in_full and number_bytes < 4 else elsewhere * layer_bytes
    permanent["masters"] -= elsewhere * 4 * trained if in_full and number_bytes < 4 else 0.0
    permanent["gradients"] -= elsewhere * 4 * trained
    permanent["optimizer"] -= elsewhere * stage.memory.moment_bytes * trained
    if in_full and stage.memory.keeps_reference:  # a copy of the shares, in their own dtype
        permanent["reference"] += 4 * trained / machine.processes - layer_bytes
    # While the model is loaded, every process holds all layers, but no gradients and no optimizer state yet.
    held = permanent["gradients"] + permanent["optimizer"] + permanent["reference"]
    phases = {**estimate.phases, "loading": {"layers not yet cut": max(0.0, elsewhere * layer_bytes - held)}}
    if stage.memory.decodes_in_batches:
        phases["rollout"] = {**phases.get("rollout", {}), "gathered layers": elsewhere * layer_bytes}
    return MemoryEstimate(permanent, phases)
