"""Whether the stages of a recipe fit into a machine's memory: rows for `earwise train --plan`. No torch.

The model, the stages and the machine come in as plain values, so that a plan can be made for any of them. Each stage
class in `training/stages/` says itself what it keeps in memory (`config/stage_memory.py`); the sums are those of
`estimate.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from earwise.config.stage_memory import StageMemory
from earwise.config.stages import StageConfig
from earwise.models.memory.estimate import BYTES, MemoryEstimate, trained_parameters, training_memory
from earwise.models.memory.sizes import ModelSizes

GB = 1e9
ALLOCATOR_FACTOR = 1.4
"""Memory that the process takes per byte that is used, with the allocator's overhead; measured on a CPU, see
`docs/reference/models.md`."""


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
    """

    name: str
    free_bytes: float | None
    is_gpu: bool
    processes: int = 1
    engine: str = "ddp"


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
        fits: Whether it fits into the machine; None if its free memory is not known.
        advice: What to change if it does not fit; "" if it does.
    """

    stage: str
    steps: int
    rows: Mapping[str, int]
    parameters: int
    trained: Mapping[str, int]
    memory_gb: Mapping[str, float]
    peak_gb: float
    dominates: str
    fits: bool | None
    advice: str

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)


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
    needed_bytes = estimate.peak * (1 if machine.is_gpu else machine.processes) * ALLOCATOR_FACTOR
    fits = None if machine.free_bytes is None else needed_bytes <= machine.free_bytes
    trained = trained_parameters(sizes, config.trainable)
    return StagePlan(
        stage=f"{number} {config.name or config.kind}",
        steps=config.max_steps,
        rows=stage.rows,
        parameters=sizes.parameters,
        trained=trained | {"all": sum(trained.values())},
        memory_gb={name: round(size / GB, 3) for name, size in estimate.parts.items()},
        peak_gb=round(estimate.peak / GB, 3),
        dominates=estimate.largest_part,
        fits=fits,
        advice=_advice(estimate.largest_part, config) if fits is False else "",
    )


def process_memory(
    sizes: ModelSizes, stage: PlannedStage, machine: Machine, *, dtype: str | None = None
) -> MemoryEstimate:
    """Memory of a stage in one of several processes.

    Under `fsdp2` each process holds its share of the decoder's layers, with their gradients and optimizer state. A
    stage that decodes while it makes batches (for completions or a reference) gathers all layers in every process
    meanwhile.
    """
    config = stage.config
    estimate = training_memory(
        sizes, config.trainable, stage.memory, dtype=dtype, pack_tokens=config.pack_tokens,
        gradient_checkpointing=config.gradient_checkpointing, cpu=not machine.is_gpu,
    )  # fmt: skip
    if machine.engine != "fsdp2" or machine.processes == 1:
        return estimate
    elsewhere = 1 - 1 / machine.processes  # share of the layers that other processes hold
    shape, number_bytes = sizes.decoder_shape, BYTES[dtype or sizes.dtype]
    if shape.experts:
        layer_parameters = max(0, sizes.decoder - 2 * shape.vocabulary * shape.width)
    else:
        layer_parameters = shape.layers * sum(rows * columns for rows, columns in shape.linear_layers.values())
    layer_bytes = number_bytes * layer_parameters
    if config.trainable.decoder == "full":
        trained_bytes = layer_bytes
    else:
        trained_bytes = 4 * trained_parameters(sizes, config.trainable)["decoder"]
    permanent = dict(estimate.permanent)
    permanent["weights"] -= elsewhere * layer_bytes
    permanent["gradients"] -= elsewhere * trained_bytes
    permanent["optimizer"] -= elsewhere * 2 * trained_bytes
    # While the model is loaded, every process holds all layers, but no gradients and no optimizer state yet.
    loading_bytes = elsewhere * layer_bytes - permanent["gradients"] - permanent["optimizer"]
    phases = {**estimate.phases, "loading": {"layers not yet cut": max(0.0, loading_bytes)}}
    if stage.memory.decodes_in_batches:
        phases["rollout"] = {**phases.get("rollout", {}), "gathered layers": elsewhere * layer_bytes}
    return MemoryEstimate(permanent, phases)


def _advice(largest_part: str, config: StageConfig) -> str:
    """What to change in a stage that does not fit."""
    if largest_part == "activations":
        if config.gradient_checkpointing:
            return f"pack_tokens below {config.pack_tokens}"
        return "gradient_checkpointing: true"
    if largest_part in ("gradients", "optimizer", "reference"):
        return "LoRA in place of full"
    if largest_part == "weights":
        return "model.dtype: bfloat16, or a smaller model"
    if largest_part in ("keys and values", "hearing and reading"):
        return "fewer prompts_per_step"
    return "less at once"
