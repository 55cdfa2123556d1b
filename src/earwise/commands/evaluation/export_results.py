"""`earwise export-results`: results of a run in the log form of another program."""

from pathlib import Path

import click

from earwise.commands.loading import json_option, print_json
from earwise.commands.paths import FILE


@click.command("export-results", short_help="Results of a run as logs of inspect or lmms-eval.")
@click.argument("run", type=FILE, metavar="RUN")
@click.option("--to", "form", required=True, type=click.Choice(["inspect", "lmms-eval"]), help="Program to write for.")
@click.option("--out", "-o", required=True, type=FILE, help="Folder to write into.")
@json_option
def command(run: Path, form: str, out: Path, as_json: bool) -> None:
    """Write a finished RUN of `earwise evaluate`, and its blind controls as tasks of their own, for another program.

    \b
    earwise export-results runs/first --to inspect --out logs/
    earwise export-results runs/first --to lmms-eval --out logs/
    """
    from earwise.report.exports.table import export_run

    files = export_run(run, form, out)
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            click.echo(str(file))
