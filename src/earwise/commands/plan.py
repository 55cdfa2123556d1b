"""`earwise train --plan`: what a recipe would do, without doing it, and whether it fits into this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import result
from earwise.commands.models import sizes_of

if TYPE_CHECKING:
    from earwise.config.recipe import Recipe
    from earwise.config.stages import Stage
    from earwise.models.memory.estimate import Memory
    from earwise.models.memory.published_sizes import Sizes

GB = 1e9
ROOM = 1.4  # what an allocator holds beside what is used; measured on a CPU, see docs/models.md


def show_plan(recipe: "Recipe", rows: list[dict[str, int]], as_json: bool, processes: int, engine: str) -> None:
    """The resolved recipe, then per stage what it trains on, how much of the model, and about how much memory; no
    weights are read.

    Args:
        recipe: Resolved.
        rows: For each stage, manifest -> rows.
        as_json: One JSON object instead.
        processes: That train together: one a GPU, or all of them in this machine's memory.
        engine: How they share the weights: `ddp` or `fsdp2`.
    Raises:
        ModelError: if the model is unknown.
    """
    import yaml

    from earwise.models.memory import estimate

    model, dtype = _sizes(recipe), recipe.model.dtype
    free, where, cuda = _free()
    stages: list[dict[str, Any]] = []
    for number, (stage, counts) in enumerate(zip(recipe.stages, rows, strict=True)):
        need = of_process(model, stage, dtype, processes, engine, cpu=not cuda)
        held = need.peak * (1 if cuda else processes)  # a GPU each, but one memory
        parts = estimate.trained(model, stage.trainable)
        stages.append(
            {
                "stage": f"{number} {stage.name or stage.kind}",
                "steps": stage.max_steps,
                "rows": counts,
                "parameters": model.parameters,
                "trained": parts | {"all": sum(parts.values())},
                "memory_gb": {name: round(size / GB, 3) for name, size in need.parts.items()},
                "peak_gb": round(need.peak / GB, 3),
                "dominates": need.dominates,
                "fits": None if free is None else held * ROOM <= free,
            }
        )
        stages[-1]["advice"] = _advice(stages[-1], need, stage.checkpoint_activations, stage.pack_tokens)
    machine: dict[str, Any] = {"where": where, "free_gb": None if free is None else round(free / GB, 1)}
    machine |= {"processes": processes, "engine": engine} if processes > 1 else {}
    if as_json:
        result({"recipe": recipe.model_dump(mode="json"), "stages": stages, "machine": machine})
        return
    click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip())
    for row in stages:
        click.echo(f"\nstage {row['stage']}: {row['steps']} steps")
        click.echo("  rows      " + ", ".join(f"{name} {count}" for name, count in row["rows"].items()))
        trained = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in row["trained"].items())
        click.echo(f"  trained   {trained} of {row['parameters'] / 1e6:.1f}M parameters")
        split = ", ".join(f"{name} {gb:.2f}" for name, gb in row["memory_gb"].items())
        each = f" for each of {processes} processes ({engine})" if processes > 1 else ""
        click.echo(f"  memory    about {row['peak_gb']:.1f} GB{each} ({split})")
        click.echo(f"  {_verdict(row, free, where)}")


def of_process(
    model: "Sizes", stage: "Stage", dtype: str | None, processes: int, engine: str, *, cpu: bool
) -> "Memory":
    """Memory of one of several processes: each has its share of the prompts, and under `fsdp2` of the decoder's layers,
    with gradients and optimizer state; what a stage asks of the model (samples, a reference) wants them whole."""
    from earwise.config.stages import GrpoStage, SftStage
    from earwise.models.memory import estimate

    if isinstance(stage, GrpoStage):
        stage = stage.model_copy(update={"prompts_per_step": -(-stage.prompts_per_step // processes)})
    need = estimate.of_stage(model, stage, dtype=dtype, cpu=cpu)
    if engine != "fsdp2" or processes == 1:
        return need
    away = 1 - 1 / processes
    says, size = model.says, estimate.BYTES[dtype or model.dtype]
    linear = sum(rows * columns for rows, columns in says.linears.values()) * says.layers
    layers = size * (linear if not says.experts else max(0, model.decoder - 2 * says.vocab * says.width))
    full = stage.trainable.decoder == "full"
    trained = layers if full else 4 * estimate.trained(model, stage.trainable)["decoder"]
    lasting = dict(need.lasting)
    lasting["weights"] -= away * layers
    lasting["gradients"] -= away * trained
    lasting["optimizer"] -= away * 2 * trained
    early = away * layers - lasting["gradients"] - lasting["optimizer"]  # which are not there yet
    phases = {**need.phases, "loading": {"layers not yet cut": max(0.0, early)}}
    if not isinstance(stage, SftStage):
        phases["rollout"] = {**phases.get("rollout", {}), "gathered layers": away * layers}
    return estimate.Memory(lasting, phases)


def _sizes(recipe: "Recipe") -> "Sizes":
    """Of the model that the recipe starts from."""
    from earwise.models.memory import published_sizes

    weights = recipe.model.weights
    if weights is not None and Path(weights).is_dir():
        return sizes_of(weights)[0]
    found = published_sizes.default(recipe.model.name) or sizes_of(recipe.model.name)[0]
    if recipe.model.connector is None:
        return found
    from earwise.models.embedded import connector
    from earwise.models.memory import config_shapes

    return config_shapes.with_connector(found, connector.chosen(recipe.model.connector.model_dump()))


def _free() -> tuple[float | None, str, bool]:
    """Bytes free where the model would be trained, the name of that place, and whether it is a GPU."""
    import torch

    from earwise.models.memory.estimate import free_memory

    if torch.cuda.is_available():
        return free_memory("cuda"), torch.cuda.get_device_name(), True
    return free_memory(), "this machine's memory", False


def _advice(row: dict[str, Any], need: "Memory", checkpointed: bool, pack_tokens: int) -> str:
    """What to change where a stage does not fit, by what holds most."""
    if row["fits"] is not False:
        return ""
    if need.dominates == "activations":
        return f"pack_tokens below {pack_tokens}" if checkpointed else "checkpoint_activations: true"
    if need.dominates in ("gradients", "optimizer", "reference"):
        return "LoRA in place of full"
    if need.dominates == "weights":
        return "model.dtype: bfloat16, or a smaller model"
    return "fewer prompts_per_step" if need.dominates in ("keys and values", "hearing and reading") else "less at once"


def _verdict(row: dict[str, Any], free: float | None, where: str) -> str:
    if free is None:
        return f"fits      not known: {where} does not say what is free; {row['dominates']} hold most"
    says = f"of {free / GB:.1f} GB free in {where}, {row['dominates']} hold most"
    return f"fits      {says}" if row["fits"] else f"TOO LARGE {says}; try {row['advice']}"
