"""`earwise build ...`: the commands that build and check data, one idea per file."""

import click

from earwise.commands.build import (
    check,
    convert,
    difficulty,
    labels,
    pack,
    preferences,
    published,
    reasonaqa,
    sari,
    scan,
    xs_cot,
)
from earwise.commands.build.post_training import contribution, puzzles, reading
from earwise.commands.training import connector, words


@click.group("build", short_help="Build and check training data.")
def group() -> None:
    """Build training data from labels and published data sets, and check it."""


group.add_command(labels.command)
group.add_command(puzzles.command)
group.add_command(contribution.command)
group.add_command(connector.command)
group.add_command(words.command)
group.add_command(check.command)
group.add_command(convert.command)
group.add_command(published.source)
group.add_command(xs_cot.xs_cot)
group.add_command(published.avqa)
group.add_command(published.join)
group.add_command(reading.command)
group.add_command(reasonaqa.command)
group.add_command(sari.command)
group.add_command(difficulty.command)
group.add_command(preferences.command)
group.add_command(scan.command)
group.add_command(pack.shards)
group.add_command(pack.parquet)
