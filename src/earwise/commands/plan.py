"""`earwise train --plan`: what a recipe would do, without doing it, and whether it fits into this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import result
from earwise.commands.models import sizes_of

if TYPE_CHECKING:
    from earwise.config import Recipe
    from earwise.models.memory import Memory
    from earwise.models.sizes import Sizes

GB = 1e9
ROOM = 1.4  # what an allocator holds beside what is used; measured on a CPU, see docs/models.md


def show_plan(recipe: "Recipe", rows: list[dict[str, int]], as_json: bool) -> None:
    """The resolved recipe, then per stage what it trains on, how much of the model, and about how much memory; no
    weights are read.

    Raises:
        ModelError: if the model is unknown.
    """
    import yaml

    from earwise.models import memory

    model, dtype = _sizes(recipe), recipe.model.dtype
    free, where, cuda = _free()
    stages: list[dict[str, Any]] = []
    for number, (stage, counts) in enumerate(zip(recipe.stages, rows, strict=True)):
        need = memory.of_stage(model, stage, dtype=dtype, cpu=not cuda)
        parts = memory.trained(model, stage.trainable)
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
                "fits": None if free is None else need.peak * ROOM <= free,
            }
        )
        stages[-1]["advice"] = _advice(stages[-1], need, stage.checkpoint_activations, stage.pack_tokens)
    machine = {"where": where, "free_gb": None if free is None else round(free / GB, 1)}
    if as_json:
        result({"recipe": recipe.model_dump(mode="json"), "stages": stages, "machine": machine})
        return
    click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip())
    for row in stages:
        click.echo(f"\nstage {row['stage']}: {row['steps']} steps")
        click.echo("  rows      " + ", ".join(f"{name} {count}" for name, count in row["rows"].items()))
        trained = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in row["trained"].items())
        click.echo(f"  trained   {trained} of {row['parameters'] / 1e6:.1f}M parameters")
        held = ", ".join(f"{name} {size:.2f}" for name, size in row["memory_gb"].items())
        click.echo(f"  memory    about {row['peak_gb']:.1f} GB ({held})")
        click.echo(f"  {_verdict(row, free, where)}")


def _sizes(recipe: "Recipe") -> "Sizes":
    """Of the model that the recipe starts from."""
    from earwise.models import sizes

    weights = recipe.model.weights
    if weights is not None and Path(weights).is_dir():
        return sizes_of(weights)[0]
    return sizes.default(recipe.model.name) or sizes_of(recipe.model.name)[0]


def _free() -> tuple[float | None, str, bool]:
    """Bytes free where the model would be trained, the name of that place, and whether it is a GPU."""
    import torch

    from earwise.models.memory import free_memory

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
