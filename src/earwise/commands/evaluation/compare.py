"""`earwise compare`: two evaluation runs on the same items, side by side."""

from pathlib import Path

import click

from earwise.commands.loading import json_option, print_json
from earwise.commands.paths import FILE


@click.command("compare", short_help="Two runs on the same items: is the difference real?")
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@click.option("--common", is_flag=True, help="If the runs are on different items, compare on those that both have.")
@click.option(
    "--score", metavar="NAME", help="Score shown in the table, for example strict. [default: the runs' headline score]"
)
@click.option("--seed", default=0, show_default=True, help="Seed of the intervals.")
@json_option
def command(before: Path, after: Path, common: bool, score: str | None, seed: int, as_json: bool) -> None:
    """Compare two folders that `earwise evaluate` wrote, item by item.

    \b
    earwise compare runs/before runs/after
    earwise compare runs/before runs/after --score strict --json
    """
    from earwise.evaluation.compare import as_text, compare

    comparison = compare(before, after, common=common, seed=seed)
    table = as_text(comparison, score)
    if as_json:
        print_json(comparison)
    else:
        click.echo(table)
