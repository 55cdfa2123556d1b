"""`earwise build ...`: the commands that make and check data, each in a file of its own."""

import click

from earwise.commands.build import check, difficulty, labels, preferences, sari, scale, sources, xs_cot


@click.group("build", short_help="Build and check training data.")
def group() -> None:
    """Turn labelled sounds into questions, and check data before it is trained on."""


group.add_command(labels.command)
group.add_command(check.command)
group.add_command(sources.source)
group.add_command(xs_cot.xs_cot)
group.add_command(sources.avqa)
group.add_command(sources.reasonaqa)
group.add_command(sari.command)
group.add_command(difficulty.command)
group.add_command(preferences.command)
group.add_command(scale.scan)
group.add_command(scale.shards)
group.add_command(scale.parquet)
