"""`earwise build ...`: the commands that make and check data, each in a file of its own."""

import click

from earwise.commands import (
    build_check,
    build_difficulty,
    build_labels,
    build_preferences,
    build_sari,
    build_scale,
    build_sources,
    build_xs_cot,
)


@click.group("build", short_help="Build and check training data.")
def group() -> None:
    """Turn labelled sounds into questions, and check data before it is trained on."""


group.add_command(build_labels.command)
group.add_command(build_check.command)
group.add_command(build_sources.source)
group.add_command(build_xs_cot.xs_cot)
group.add_command(build_sources.avqa)
group.add_command(build_sources.reasonaqa)
group.add_command(build_sari.command)
group.add_command(build_difficulty.command)
group.add_command(build_preferences.command)
group.add_command(build_scale.scan)
group.add_command(build_scale.shards)
group.add_command(build_scale.parquet)
