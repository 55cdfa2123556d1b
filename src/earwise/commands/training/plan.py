"""`earwise train --plan`: what a recipe would train and need, without loading the model; the sums are in
`models/memory/plan.py`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import open_model, print_json

if TYPE_CHECKING:
    from earwise.config.recipe import Recipe
    from earwise.models.memory.plan import Machine, StagePlan

GB = 1e9


def show_plan(recipe: "Recipe", rows: Sequence[Mapping[str, int]], as_json: bool, processes: int, engine: str) -> None:
    """Print the resolved recipe, then for each stage its data, its trained parameters, and an estimate of its memory.

    Args:
        recipe: The resolved recipe.
        rows: For each stage, manifest -> number of rows.
        as_json: Whether to print one JSON object instead.
        processes: Number of processes that train together: each on its own GPU, or all in this machine's memory.
        engine: How they share the weights: `ddp` or `fsdp2`.
    Raises:
        ModelError: if the model is unknown.
    """
    import yaml

    from earwise.models.memory.lookup import starting_sizes
    from earwise.models.memory.plan import PlannedStage, plan_stages
    from earwise.training.stages.table import stage_class

    model, machine = recipe.model, _this_machine(processes, engine)
    connector = None if model.connector is None else model.connector.model_dump()
    sizes = starting_sizes(model.name, model.weights, connector, open_model)
    stages = [
        PlannedStage(stage, stage_class(stage).memory(stage, processes), counts)
        for stage, counts in zip(recipe.stages, rows, strict=True)
    ]
    plans = plan_stages(sizes, stages, machine, dtype=model.dtype)
    if as_json:
        where: dict[str, Any] = {"where": machine.name, "free_gb": None}
        where |= {} if machine.free_bytes is None else {"free_gb": round(machine.free_bytes / GB, 1)}
        where |= {"processes": processes, "engine": engine} if processes > 1 else {}
        recipe_content = recipe.model_dump(mode="json")
        print_json({"recipe": recipe_content, "stages": [plan.to_json() for plan in plans], "machine": where})
        return
    click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip())
    for plan in plans:
        _print_stage(plan, machine)


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
    comparison = f"of {machine.free_bytes / GB:.1f} GB free in {machine.name}, {plan.dominates} hold most"
    return f"fits      {comparison}" if plan.fits else f"TOO LARGE {comparison}; try {plan.advice}"


def _this_machine(processes: int, engine: str) -> "Machine":
    """Free memory where the model would be trained: of the GPU if there is one."""
    import torch

    from earwise.models.memory.estimate import free_memory
    from earwise.models.memory.plan import Machine

    if torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), free_memory("cuda"), True, processes, engine)
    return Machine("this machine's memory", free_memory(), False, processes, engine)
