"""`earwise build reading`: questions about words, without sound, from WordNet."""

from pathlib import Path

import click

from earwise.commands.loading import json_option, print_json
from earwise.commands.paths import FILE


@click.command("reading", short_help="Questions about words, without sound, from WordNet.")
@click.argument("wordnet", type=FILE)
@click.option("--out", "-o", required=True, type=FILE, help="Manifest to write (JSON lines).")
@click.option(
    "--limit", default=10_000, show_default=True, type=click.IntRange(1), help="Number of questions to write."
)
@click.option(
    "--val-share",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the nouns whose questions get the split val.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of all choices.")
@json_option
def command(wordnet: Path, out: Path, limit: int, val_share: float, seed: int, as_json: bool) -> None:
    """Write questions that teach a model to find what it is told among options that say it otherwise.

    WORDNET is the folder of WordNet's data files; the Debian package wordnet-base puts them into /usr/share/wordnet.
    The rows hold words and definitions of WordNet, so its licence applies to them.

    \b
    earwise build reading /usr/share/wordnet --out runs/reading.jsonl
    """
    from earwise.datasets.reading.build_reading import build_reading
    from earwise.datasets.reading.reading_questions import ReadingOptions

    count = build_reading(wordnet, out, ReadingOptions(limit, val_share, seed))
    if as_json:
        print_json({"out": str(out), "questions": count})
    else:
        click.echo(f"{out}: {count} questions about words")
