"""`earwise demo`: ask the default model, train it by reinforcement, and measure it before and after, in minutes."""

from pathlib import Path

import click

from earwise.commands.loading import print_json
from earwise.commands.paths import FILE


@click.command("demo", short_help="Ask, train and measure the default model, in minutes.")
@click.option("--out", "-o", default="runs/demo", show_default=True, type=FILE,
              help="Folder of the demo; an interrupted demo is continued, a finished one is replaced.")  # fmt: skip
@click.option("--recipe", default="r1-aqa", show_default=True, help="Recipe with a profile `cpu`: a name or a path.")
def command(out: Path, recipe: str) -> None:
    """Ask the default model about a few clips, train it by reinforcement, and measure it before and after.

    \b
    earwise demo
    earwise demo --out runs/second

    The last line is a JSON object with the accuracies; the report is OUT/report.html.
    """
    from earwise.apps import demo
    from earwise.config.recipe_files import find_recipe

    print_json({"demo": demo.run(out, find_recipe(recipe)[0])})
