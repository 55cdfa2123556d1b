"""`earwise status`: how far a training run is, and whether its process lives."""

from pathlib import Path

import click

from earwise.commands.loading import json_option, print_json
from earwise.commands.paths import FILE


@click.command("status", short_help="How far a training run is, and whether its process lives.")
@click.argument("run", type=FILE)
@json_option
def command(run: Path, as_json: bool) -> None:
    """Print stage, step, pace, time left, last values and last evaluation of the training run in the folder RUN.

    \b
    earwise status runs/r1
    watch -n 10 earwise status runs/r1

    Only the run's files are read: this works beside a run, after it, and on another machine that sees the folder.
    """
    from earwise.training.logging.run_status import describe_status, run_status

    status = run_status(run)
    if as_json:
        print_json(status.to_json())
        return
    for line in describe_status(status):
        click.echo(line)
