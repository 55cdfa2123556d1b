"""`earwise ablate`: arms of a recipe, each with several seeds, and whether they differ."""

from pathlib import Path

import click

from earwise.commands.loading import fetch_base, json_option, note, result
from earwise.commands.preflight import preflight
from earwise.config.resolve import require


@click.command("ablate", short_help="Train arms of a recipe with several seeds and test the difference.")
@click.argument("recipe", metavar="RECIPE.yaml", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--arms", required=True, metavar="A,B,...", help="Names under `arms:`; the others are tested against the first."
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Runs of each arm.")
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder of all runs and of the table."
)
@click.option("--profile", "-p", help="Scale of the recipe: a name under its `profiles:`, for example cpu.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that the manifests start from. [default: the recipe's]",
)
@json_option
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    arms: str,
    seeds: int,
    out: Path,
    profile: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Train every arm of RECIPE.yaml with every seed, one after the other, and compare them item by item.

    \b
    earwise ablate recipes/r1-aqa.yaml --profile cpu --arms sft-lora,grpo --seeds 3 --out runs/sft-or-rl
    earwise ablate recipes/sari.yaml --profile cpu --arms sft-structured-shuffled,sft-structured-sorted --out runs/order

    The same command goes on where it was stopped; a run that failed is tried again. OUT gets a folder a run, and
    ablation.html, .md and .json.
    """
    for needed in ("accelerate", "peft"):
        require(needed, "train", "stages")
    from earwise.apps import ablation

    named = [arm.strip() for arm in arms.split(",") if arm.strip()]
    found = ablation.jobs(recipe, named, seeds, out, profile=profile, data=data, overrides=overrides)
    for job in found[: len(named)]:
        preflight(job.recipe, job.base)
        fetch_base(job.recipe.model.name)
    failed = ablation.run(found, note)
    title = f"{recipe.stem}{f', {profile}' if profile else ''}: {', '.join(named)}"
    table = ablation.write(out, found, failed, title)
    if as_json:
        result(table | {"report": str(out / "ablation.html")})
        return
    click.echo((out / "ablation.md").read_text(encoding="utf-8"))
    click.echo(str(out / "ablation.html"))
