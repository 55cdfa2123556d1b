"""`earwise recipe`: list the recipes of the package, or print one as a start for your own."""

from itertools import takewhile
from typing import Any

import click

from earwise.commands.loading import json_option, print_json
from earwise.commands.paths import NAME_OR_PATH
from earwise.errors import ConfigError


def complete_recipe(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of packaged recipes that begin with what was typed, for the shell's completion."""
    from earwise.config.recipe_files import packaged_recipes

    return [name for name in packaged_recipes() if name.startswith(incomplete)]


@click.command("recipe", short_help="List the recipes of the package, or print one.")
@click.argument("name", type=NAME_OR_PATH, required=False, shell_complete=complete_recipe)
@click.option("--path", "show_path", is_flag=True, help="Print the path of the file in place of its content.")
@json_option
def command(name: str | None, show_path: bool, as_json: bool) -> None:
    """List the recipes of the package, or print the YAML of the recipe or launch configuration NAME.

    \b
    earwise recipe
    earwise recipe r1-aqa > mine.yaml
    accelerate launch --config_file "$(earwise recipe --path ddp)" --num_processes 2 -m earwise train r1-aqa
    """
    from earwise.config.recipe_files import find_packaged, launch_configs

    if name is not None:
        if as_json:
            raise ConfigError("--json lists the recipes; leave it out to print one as YAML")
        path = find_packaged(name)
        click.echo(str(path) if show_path else path.read_text(encoding="utf-8").rstrip())
        return
    rows = _list_recipes()
    if as_json:
        print_json({"recipes": rows, "launch_configs": launch_configs()})
        return
    for row in rows:
        click.echo(f"{row['recipe']:15} {row['about']}")
        click.echo(f"{'':15} profiles: {', '.join(row['profiles'])}; {len(row['arms'])} arms")
    click.echo(f"launch configurations: {', '.join(launch_configs())}")


def _list_recipes() -> list[dict[str, Any]]:
    """Name, subject, profiles and arms of every packaged recipe."""
    import yaml

    from earwise.config.recipe_files import find_packaged, packaged_recipes

    rows = []
    for name in packaged_recipes():
        text = find_packaged(name).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        names = {kind: list(content.get(kind) or {}) for kind in ("profiles", "arms")}
        rows.append({"recipe": name, "about": _subject(text), **names})
    return rows


def _subject(text: str) -> str:
    """The first sentence of the comment that a recipe begins with."""
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))
    return comment.partition(". ")[0] + "."
