"""`earwise recipe`: list the recipes of the package, or print one as a start for your own."""

import click

from earwise.commands.loading import json_option, print_json
from earwise.errors import ConfigError


def complete_recipe(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of packaged recipes that begin with what was typed, for the shell's completion."""
    from earwise.config.recipe_files import packaged_recipes

    return [name for name in packaged_recipes() if name.startswith(incomplete)]


@click.command("recipe", short_help="List the recipes of the package, or print one.")
@click.argument("name", required=False, shell_complete=complete_recipe)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the packaged recipes with their profiles, or print the YAML of recipe NAME.

    \b
    earwise recipe
    earwise recipe r1-aqa > mine.yaml
    """
    import yaml

    from earwise.config.recipe_files import find_packaged, packaged_recipes

    if name is not None:
        if as_json:
            raise ConfigError("--json lists recipes; leave it out to print one as YAML")
        click.echo(find_packaged(name).read_text(encoding="utf-8"), nl=False)
        return
    rows = []
    for recipe_name in packaged_recipes():
        text = find_packaged(recipe_name).read_text(encoding="utf-8")
        first_line = text.partition("\n")[0].removeprefix("#").strip()
        content = yaml.safe_load(text)
        names = {kind: list(content.get(kind) or {}) for kind in ("profiles", "arms")}
        rows.append({"recipe": recipe_name, "about": first_line, **names})
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['recipe']:15} profiles: {', '.join(row['profiles'])}; {len(row['arms'])} arms")
        click.echo(f"{'':15} {row['about']}")
