"""`earwise ablate`: arms of a recipe, each trained with several seeds, and whether they differ."""

from pathlib import Path

import click

from earwise.commands.loading import json_option, note, print_json
from earwise.commands.paths import FILE, NAME_OR_PATH
from earwise.commands.training.recipe import complete_recipe
from earwise.config.resolve import require


@click.command("ablate", short_help="Train arms of a recipe with several seeds and test the difference.")
@click.argument("recipe", type=NAME_OR_PATH, shell_complete=complete_recipe)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--arms", required=True, metavar="A,B,...", help="Names under `arms:`; the others are tested against the first."
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Number of runs of each arm.")
@click.option("--out", "-o", required=True, type=FILE, help="Folder of all runs and of the table.")
@click.option("--profile", "-p", help="Profile of the recipe: a name under its `profiles:`, for example cpu.")
@click.option(
    "--data",
    type=FILE,
    metavar="DIR",
    help="Folder that the manifests start from. [default: the recipe's]",
)
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    arms: str,
    seeds: int,
    out: Path,
    profile: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Train every arm of RECIPE with every seed, one after the other, and compare them item by item.

    RECIPE is the name of a recipe of the package (see `earwise recipe`), or a YAML file.

    \b
    earwise ablate r1-aqa --profile cpu --arms sft-lora,grpo --seeds 3 --out runs/sft-or-rl
    earwise ablate sari --profile cpu --arms sft-structured-shuffled,sft-structured-sorted --out runs/order

    The same command continues a stopped ablation; a run that failed is tried again. OUT gets one folder per run, and
    ablation.html, ablation.md and ablation.json.
    """
    for package in ("accelerate", "peft"):
        require(package, "train", "stages")
    from earwise.apps import ablation
    from earwise.engine.loading import fetch_base_weights
    from earwise.training.check_recipe import check_training

    arm_names = [arm.strip() for arm in arms.split(",") if arm.strip()]
    jobs = ablation.plan_jobs(Path(recipe), arm_names, seeds, out, profile=profile, data=data, overrides=overrides)
    for job in jobs[: len(arm_names)]:
        check_training(job.recipe, job.base, note)
        fetch_base_weights(job.recipe.model.name, note)
    failed = ablation.run_jobs(jobs, note)
    title = f"{Path(recipe).stem}{f', {profile}' if profile else ''}: {', '.join(arm_names)}"
    result = ablation.write_results(out, jobs, failed, title)
    if as_json:
        print_json(result | {"report": str(out / "ablation.html")})
        return
    click.echo((out / "ablation.md").read_text(encoding="utf-8"))
    click.echo(str(out / "ablation.html"))
