"""`earwise train`: train a recipe from its first stage to its last, measured before and after."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import json_option, note, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE
from earwise.commands.training.recipe import complete_recipe
from earwise.config.resolve import require
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.apps.recipe_run import TrainResult
    from earwise.config.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrainCommandOptions:
    """The arguments and options of `earwise train`."""

    arguments: tuple[str, ...]
    profile: str | None
    arm: str | None
    out: Path | None
    data: Path | None
    resume: Path | None
    plan: bool
    processes: int | None
    engine: str | None
    evaluate: bool
    track: tuple[str, ...]
    profile_step: bool
    as_json: bool


@click.command("train", short_help="Train by a recipe: SFT, GRPO, any number of stages.")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...", shell_complete=complete_recipe)
@click.option("--profile", "-p", help="Scale of the recipe: a name under its `profiles:`, for example cpu.")
@click.option("--arm", help="Variant of the recipe: a name under its `arms:`; applied after the profile.")
@click.option(
    "--out",
    "-o",
    type=FILE,
    help="Folder of the run. [default: runs/RECIPE-PROFILE-ARM, without parts that are not given]",
)
@click.option(
    "--data", type=FILE, metavar="DIR",
    help="Folder that the manifests start from. [default: the recipe's; for a recipe of the package the current one]",
)  # fmt: skip
@click.option("--resume", type=FILE, metavar="DIR", help="Continue a stopped run from its folder alone.")
@click.option(
    "--plan", is_flag=True,
    help="Print the resolved recipe, rows, trained parameters and a memory estimate; train nothing. Exit code 2 if it "
    "does not fit.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(min=1), metavar="N",
    help="For --plan: number of processes that will train together.  [default: the recipe's `hardware`, or 1]",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(["ddp", "fsdp2"]),
    help="For --plan: how the model is divided between processes.  [default: the recipe's `hardware`, or ddp]",
)  # fmt: skip
@click.option(
    "--eval/--no-eval", "evaluate", default=True, show_default=True,
    help="Measure as the recipe's `eval:` says, before and after training.",
)  # fmt: skip
@click.option(
    "--track", multiple=True, metavar="NAME",
    help="Also log to this tracker: wandb, trackio, or your own file.py:function; may be given several times.",
)  # fmt: skip
@click.option(
    "--profile-step", is_flag=True, help="Report where the time of a step goes (every 10 steps, and at the end)."
)
@json_option
def command(**values: Any) -> None:
    """Train RECIPE: the name of a recipe of the package (see `earwise recipe`), or a YAML file.

    KEY=VALUE changes one setting: dotted keys, list elements by number or stage name, * for all.

    \b
    earwise train r1-aqa --profile cpu --plan
    earwise train r1-aqa --profile cpu --out runs/r1
    earwise train mine.yaml stages.0.max_steps=10 stages.0.optimizer.learning_rate=1e-5
    earwise train --resume runs/r1

    The run's folder holds recipe.json, metrics.jsonl, rollouts.jsonl, a folder per stage, and `final`, the trained
    model. To watch it: tensorboard --logdir DIR/tensorboard.
    """
    for package in ("accelerate", "peft"):
        require(package, "train", "stages")
    options = collect_options(TrainCommandOptions, values)
    if options.plan:
        _plan(options)
        return
    result = _train(options)
    if not result.is_first_process:
        return
    if options.as_json:
        evaluations = [
            {"manifest": row.manifest, "before": row.before, "after": row.after} for row in result.evaluations
        ]
        seconds = round(result.seconds, 1)
        print_json({"final": str(result.final), "out": str(result.out), "seconds": seconds, "eval": evaluations})
        return
    from earwise.training.logging.run_status import result_text

    for row in result.evaluations:
        click.echo(result_text(row.manifest, row.before, row.after))
    click.echo(str(result.final))


def _train(options: TrainCommandOptions) -> "TrainResult":
    """Start the run that the options ask for, or continue it."""
    if options.resume is None:
        recipe, base = _load_recipe(options)  # before torch is imported, so that a wrong recipe is refused at once
    elif options.arguments or options.profile or options.arm or options.out or options.data:
        raise ConfigError(
            f"--resume {options.resume} takes the recipe from that folder; leave out recipe, settings and other options"
        )
    from earwise.apps.recipe_run import TrainOptions, resume_run, train_recipe

    train_options = TrainOptions(options.evaluate, options.track, options.profile_step)
    if options.resume is not None:
        return resume_run(options.resume, options=train_options, notify=note)
    out = options.out or Path("runs") / "-".join(filter(None, (recipe.recipe, options.profile, options.arm)))
    return train_recipe(recipe, base, out, options=train_options, notify=note)


def _plan(options: TrainCommandOptions) -> None:
    """Print what the run would train and need."""
    from earwise.apps.recipe_run import check_run
    from earwise.commands.training.plan import show_plan

    if options.resume is not None:
        raise ConfigError("--plan is for a run that has not begun; leave out --resume, or give the recipe")
    recipe, base = _load_recipe(options)
    recipe = recipe.tracked_in(options.track)
    checked = check_run(recipe, base, note)
    recipe = recipe.model_copy(update={"stages": tuple(stage.config for stage in checked.stages)})
    show_plan(recipe, checked.row_counts, options.as_json, options.processes, options.engine)


def _load_recipe(options: TrainCommandOptions) -> "tuple[Recipe, Path]":
    """The resolved recipe, and the folder that its manifests start from."""
    from earwise.config.recipe import load_recipe
    from earwise.config.recipe_files import find_recipe

    names = [argument for argument in options.arguments if "=" not in argument]
    if len(names) != 1:
        raise ConfigError(f"give one recipe, for example r1-aqa, or --resume DIR; got {', '.join(names) or 'none'}")
    path, base = find_recipe(names[0])
    overrides = [argument for argument in options.arguments if "=" in argument]
    return load_recipe(path, profile=options.profile, arm=options.arm, overrides=overrides), options.data or base
