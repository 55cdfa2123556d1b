"""`earwise train`: a recipe from its first stage to its last, measured before and after where it says so."""

from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import fetch_base, json_option, note, result
from earwise.commands.plan import show_plan
from earwise.commands.preflight import preflight
from earwise.config.resolve import require
from earwise.errors import ConfigError
from earwise.files import alone

if TYPE_CHECKING:
    from earwise.config.recipe import Recipe


@click.command("train", short_help="Train by a recipe: SFT, GRPO, any number of stages.")
@click.argument("arguments", nargs=-1, metavar="[RECIPE.yaml] [KEY=VALUE]...")
@click.option("--profile", "-p", help="Scale of the recipe: a name under its `profiles:`, for example cpu.")
@click.option("--arm", help="Variant of the recipe: a name under its `arms:`; laid over the profile.")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the run. [default: runs/RECIPE[-PROFILE][-ARM]]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that the manifests start from. [default: the recipe's]",
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue a stopped run from its folder alone."
)
@click.option(
    "--plan",
    is_flag=True,
    help="Print the resolved recipe, rows, trained parameters and a memory estimate; train nothing.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="For --plan: how many are to train together.",
)
@click.option(
    "--engine", type=click.Choice(["ddp", "fsdp2"]), default="ddp", help="For --plan: recipes/engines/ENGINE.yaml."
)
@click.option(
    "--eval/--no-eval",
    "measured",
    default=True,
    show_default=True,
    help="Measure as the recipe's `eval:` says, before and after.",
)
@click.option(
    "--track",
    multiple=True,
    metavar="NAME",
    help="Show the run here too: wandb, trackio, or your own module:function; may stand several times.",
)
@click.option(
    "--profile-step",
    is_flag=True,
    help="Say where the time of a step goes (every 10 steps, and at the end) and log it.",
)
@json_option
def command(
    arguments: tuple[str, ...],
    profile: str | None,
    arm: str | None,
    out: Path | None,
    data: Path | None,
    resume: Path | None,
    plan: bool,
    processes: int,
    engine: str,
    measured: bool,
    track: tuple[str, ...],
    profile_step: bool,
    as_json: bool,
) -> None:
    """Train by RECIPE.yaml; KEY=VALUE changes one setting (dotted keys, list elements by number, * for all).

    \b
    earwise train recipes/r1-aqa.yaml --profile cpu --plan
    earwise train recipes/r1-aqa.yaml --profile cpu --out runs/r1
    earwise train recipes/r1-aqa.yaml stages.0.max_steps=10 stages.0.optimizer.lr=1e-5
    earwise train --resume runs/r1

    The run's folder holds recipe.json, metrics.jsonl, rollouts.jsonl, a folder a stage, and `final`, the trained model.
    To watch it: tensorboard --logdir DIR/tensorboard.
    """
    for needed in ("accelerate", "peft"):
        require(needed, "train", "stages")
    from earwise.config.recipe import load_recipe
    from earwise.train import run
    from earwise.train.distributed import parallel

    started = perf_counter()
    if resume is not None:
        if arguments or profile or arm or out or data or plan:
            raise ConfigError(
                f"--resume {resume} takes the recipe from that folder; leave out recipe, settings and other options"
            )
        folder, recipe, base = resume, *_recorded(resume)
        preflight(recipe.shown_in(track), base)
        if (folder / "final" / "earwise.json").exists():
            note(
                f"{folder}: is finished, nothing is left to train; "
                f"to train further start another run with model.name={folder / 'final'}"
            )
    else:
        path, overrides = _split(arguments)
        recipe = load_recipe(path, profile=profile, arm=arm, overrides=overrides).shown_in(track)
        folder, base = out or Path("runs") / "-".join(filter(None, (recipe.recipe, profile, arm))), data or path.parent
        rows = preflight(recipe, base)
        if plan:
            show_plan(recipe, rows, as_json, processes, engine)
            return
        if (folder / "recipe.json").exists():
            raise ConfigError(
                f"{folder}: already holds a run; continue it with --resume {folder}, or choose another --out"
            )
    if not measured:
        recipe = recipe.model_copy(update={"eval": ()})  # kept with the run, so that --resume does as it was begun
    parallel.begin()
    first = parallel.main()
    measured = measured and first
    try:
        with alone(folder) if first else nullcontext():
            if first:
                fetch_base(recipe.model.name)
            parallel.wait()
            before = _measure(recipe, base, folder, "before", None) if measured else []
            if resume is not None:
                final = run.resume(folder, track=track, profile=profile_step, say=note)
            else:
                final = run.start(recipe, folder, base, profile=profile_step, say=note)
            after = _measure(recipe, base, folder, "after", final) if measured else []
    except KeyboardInterrupt:
        how = f"earwise train --resume {folder}" if (folder / "recipe.json").exists() else "the same command"
        raise KeyboardInterrupt(f"interrupted; finished work is kept, continue with {how}") from None
    parallel.end()
    if not first:
        return
    pairs = list(zip(recipe.eval, before, after, strict=True)) if measured else []
    if as_json:
        evals = [{"manifest": one.manifest, "before": was, "after": now} for one, was, now in pairs]
        result({"final": str(final), "out": str(folder), "seconds": round(perf_counter() - started, 1), "eval": evals})
        return
    for one, was, now in pairs:
        click.echo(f"{one.manifest}: {_shown(was)} -> {_shown(now)}")
    click.echo(str(final))


def _split(arguments: tuple[str, ...]) -> tuple[Path, list[str]]:
    """The recipe, and the settings that change it."""
    recipes = [argument for argument in arguments if "=" not in argument]
    if len(recipes) != 1:
        raise ConfigError(
            f"give one recipe, for example recipes/r1-aqa.yaml, or --resume DIR; got {', '.join(recipes) or 'none'}"
        )
    return Path(recipes[0]), [argument for argument in arguments if "=" in argument]


def _recorded(folder: Path) -> "tuple[Recipe, Path]":
    """The recipe of a stopped run, and the folder that its manifests start from."""
    import json

    from earwise.config.recipe import check_recipe

    at = folder / "recipe.json"
    try:
        recorded = json.loads(at.read_text(encoding="utf-8"))
        return check_recipe(recorded["recipe"], str(at)), Path(recorded["base"])
    except FileNotFoundError as error:
        if folder.is_dir():
            with alone(folder):  # else the run has only just begun
                pass
        raise ConfigError(
            f"{folder}: no recipe.json here; give the --out folder of an earlier `earwise train`, or, if it was "
            "interrupted before its first step, the command that it was begun with"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{at}: is no recipe of a run ({error}); start the run anew") from error


def _measure(recipe: "Recipe", base: Path, folder: Path, when: str, final: Path | None) -> list[dict[str, Any]]:
    """The recipe's `eval:` into `folder/eval/WHEN-N`; what is finished is not asked again."""
    if not recipe.eval:
        return []
    from earwise.apps.recipe_eval import headline, measure
    from earwise.engine.local import LocalEngine
    from earwise.models import detect as models
    from earwise.train.run import model_of

    named = (recipe.model.name, recipe.model.weights) if final is None else (str(final), None)
    engine = LocalEngine(model_of(recipe, final))
    if at := next((Path(place) for place in named[::-1] if place and Path(place).is_dir()), None):
        engine.name = models.named(engine.name, at)
    found = []
    for number, one in enumerate(recipe.eval):
        note(f"measuring {one.manifest} {when} training")
        out = folder / "eval" / f"{when}-{number}"
        found.append(headline(measure(one, base, engine, out, seed=recipe.seed, blind=("silence",), say=note)))
    return found


def _shown(row: dict[str, Any]) -> str:
    extra = "".join(
        f", {name.replace('_accuracy', '')} {row[name]:.3f}"
        for name in ("blind_accuracy", "format")
        if row[name] is not None
    )
    return f"{row['accuracy']:.3f} (n {row['n']}{extra})"
