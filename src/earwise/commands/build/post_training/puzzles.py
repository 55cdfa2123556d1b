"""`earwise build puzzles`: questions with known answers from unlabelled recordings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import json_option, note, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE


@dataclass(frozen=True, slots=True)
class PuzzlesCommand:
    """Options of `earwise build puzzles`; see the help texts below."""

    folder: Path
    out: Path
    tasks: str
    limit: int | None
    val_share: float
    licence: str
    seed: int
    skip_unreadable: bool
    workers: int | None
    run_checks: bool
    as_json: bool


@click.command("puzzles", short_help="Questions from unlabelled recordings.")
@click.argument("folder", type=FILE)
@click.option("--out", "-o", required=True, type=FILE, help="Manifest to write; the sounds are written beside it.")
@click.option(
    "--tasks",
    default="reversed,louder,longer,count,same,match,jigsaw",
    show_default=True,
    help="Kinds of puzzles, separated by commas.",
)
@click.option("--limit", type=click.IntRange(1), help="Maximum number of puzzles of each task in each split.")
@click.option(
    "--val-share", default=0.2, show_default=True, help="Share of the recordings whose puzzles get the split val."
)
@click.option("--licence", default="", metavar="TEXT", help="Licence of the recordings.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random choices.")
@click.option("--skip-bad", "skip_unreadable", is_flag=True, help="Leave out files that cannot be read, and list them.")
@click.option("--workers", type=click.IntRange(1), help="Number of processes that decode.  [default: one per core]")
@check_option
@json_option
def command(**values: Any) -> None:
    """Make questions from the recordings in FOLDER, of which nothing needs to be known.

    Parts of recordings are played backwards, louder, longer, repeatedly, twice, or in another order, and that is what
    is asked for. These are self-supervised tasks with answers that a reward can check, as in Audio-R1.

    \b
    earwise build puzzles field-recordings/ --out puzzles.jsonl
    earwise build puzzles music/ --out jigsaws.jsonl --tasks jigsaw,reversed --limit 2000 --seed 1
    """
    from earwise.datasets.puzzles.build import PuzzleOptions, build_puzzles

    chosen = collect_options(PuzzlesCommand, values)
    tasks = tuple(part.strip() for part in chosen.tasks.split(",") if part.strip())
    options = PuzzleOptions(
        tasks, chosen.limit, chosen.val_share, chosen.licence, chosen.seed, chosen.skip_unreadable, chosen.workers
    )
    built = build_puzzles(chosen.folder, chosen.out, options, note)
    if chosen.as_json:
        summary = {"out": str(chosen.out), "questions": built.questions, "recordings": built.recordings}
        print_json(summary | {"skipped": built.skipped, "tasks": built.tasks})
    else:
        counts = ", ".join(f"{number} {task}" for task, number in sorted(built.tasks.items()))
        click.echo(f"{chosen.out}: {built.questions} puzzles from {built.recordings} recordings ({counts})")
    if chosen.run_checks:
        check_built([chosen.out], workers=chosen.workers)
