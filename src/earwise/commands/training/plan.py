"""`earwise train --plan`: what a recipe would train and need, without loading the model; the sums are in
`models/memory/plan.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import open_model, print_json
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.config.recipe import Recipe
    from earwise.models.memory.plan import Machine, StagePlan

GB = 1e9


def show_plan(
    recipe: "Recipe", rows: Sequence[Mapping[str, int]], as_json: bool, processes: int | None, engine: str | None
) -> None:
    """Print the resolved recipe, then for each stage its data, its trained parameters, and an estimate of its memory.

    Args:
        recipe: The resolved recipe.
        rows: For each stage, manifest -> number of rows.
        as_json: Whether to print one JSON object instead.
        processes: Number of processes that train together: each on its own GPU, or all in this machine's memory; None
            takes the recipe's `hardware`, or 1.
        engine: How they share the weights: `ddp` or `fsdp2`; None takes the recipe's `hardware`, or `ddp`.
    Raises:
        ModelError: if the model is unknown.
        ConfigError: after the plan is printed, if a stage does not fit; names it and the change that makes it fit.
    """
    import yaml

    from earwise.models.memory.lookup import starting_sizes
    from earwise.models.memory.plan import PlannedStage, plan_stages
    from earwise.training.stages.table import stage_class

    model = recipe.model
    machine = replace(_machine(recipe, processes, engine), compute=model.compute)
    connector = None if model.connector is None else model.connector.model_dump()
    sizes = replace(starting_sizes(model.name, model.weights, connector, open_model), quantization=model.quantization)
    stages = [
        PlannedStage(stage, stage_class(stage).memory(stage, machine.processes), counts)
        for stage, counts in zip(recipe.stages, rows, strict=True)
    ]
    plans = plan_stages(sizes, stages, machine, dtype=model.dtype)
    if as_json:
        where: dict[str, Any] = {"where": machine.name, "free_gb": None}
        where |= {} if machine.free_bytes is None else {"free_gb": round(machine.free_bytes / GB, 1)}
        where |= {"processes": machine.processes, "engine": machine.engine} if machine.processes > 1 else {}
        recipe_content = recipe.model_dump(mode="json")
        print_json({"recipe": recipe_content, "stages": [plan.to_json() for plan in plans], "machine": where})
    else:
        click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip())
        for plan in plans:
            _print_stage(plan, machine)
    too_large = next((plan for plan in plans if plan.fits is False), None)
    if too_large is not None:
        raise ConfigError(f"stage {too_large.stage} does not fit into {machine.name}; set {too_large.advice}")


def _print_stage(plan: "StagePlan", machine: "Machine") -> None:
    click.echo(f"\nstage {plan.stage}: {plan.steps} steps")
    click.echo("  rows      " + ", ".join(f"{name} {count}" for name, count in plan.rows.items()))
    trained = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in plan.trained.items())
    click.echo(f"  trained   {trained} of {plan.parameters / 1e6:.1f}M parameters")
    parts = ", ".join(f"{name} {gigabytes:.2f}" for name, gigabytes in plan.memory_gb.items())
    each = f" for each of {machine.processes} processes ({machine.engine})" if machine.processes > 1 else ""
    click.echo(f"  memory    about {plan.peak_gb:.1f} GB{each} ({parts})")
    click.echo(f"  {_fit_line(plan, machine)}")


def _fit_line(plan: "StagePlan", machine: "Machine") -> str:
    """Whether the stage fits, and what to change if not."""
    if machine.free_bytes is None:
        return f"fits      not known: {machine.name} does not say what is free; {plan.dominates} hold most"
    free = f"{machine.free_bytes / GB:.1f} GB in {machine.name}"
    needed = f"{plan.needed_gb:.1f} GB with the allocator's overhead, of {free}"
    if plan.fits:
        return f"fits      {needed}: {plan.margin_gb:.1f} GB to spare, {plan.dominates} hold most"
    lacking = -(plan.margin_gb or 0.0)
    return f"TOO LARGE {needed}: {lacking:.1f} GB too much, {plan.dominates} hold most; set {plan.advice}"


def _machine(recipe: "Recipe", processes: int | None, engine: str | None) -> "Machine":
    """The GPUs that the recipe is meant for, or this machine if it names none."""
    from earwise.models.memory.plan import Machine, this_machine

    hardware = recipe.hardware
    if hardware is None:
        return this_machine(processes or 1, engine or "ddp")
    name = f"a GPU of {hardware.gpu_memory_gb:g} GB (the recipe's hardware)"
    free_bytes = hardware.gpu_memory_gb * GB
    return Machine(name, free_bytes, True, processes or hardware.gpus, engine or hardware.engine)
