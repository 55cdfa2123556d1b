"""`earwise build labels`: questions about one clip, two clips, and composed scenes, from a labelled collection."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import field_values, json_option, note, print_json
from earwise.commands.options import collect_options, old_option
from earwise.commands.paths import FILE


@dataclass(frozen=True, slots=True)
class LabelsCommandOptions:
    """Options of `earwise build labels`; see the help texts below."""

    collection: Path
    out: Path
    tasks: str
    fields: str | None
    n_choices: int
    per_clip: int | None
    draws: int
    limit: int | None
    split: str | None
    without: tuple[str, ...]
    licence: str | None
    seed: int
    skip_unreadable: bool
    workers: int | None
    run_checks: bool
    as_json: bool


@click.command("labels", short_help="Questions from labelled clips.")
@click.argument("collection", type=FILE)
@click.option(
    "--out",
    "-o",
    required=True,
    type=FILE,
    help="Manifest to write (JSON lines); audio paths become relative to its folder.",
)
@click.option(
    "--tasks",
    default="recognition,yes_no,open,caption",
    show_default=True,
    help="Kinds of questions, separated by commas. Also: varied (in many wordings and forms); refusal (for what "
    "is not there); words (what is said); same, compare (two clips); order, count, louder, odd_one_out, overlap "
    "(scenes composed of several clips, written beside OUT).",
)
@click.option(
    "--fields",
    help="Fields to ask for, separated by commas: sound, instrument, language, emotion, gender, digit, words, kind, "
    "speaker, and compared by measurement loudness, pitch, duration, tempo.  [default: all]",
)
@click.option(
    "--n-choices",
    default=4,
    show_default=True,
    type=click.IntRange(2),
    help="Number of options of a multiple-choice question.",
)
@click.option(
    "--per-clip", type=click.IntRange(1), help="Maximum number of questions about a single clip, drawn at random."
)
@click.option(
    "--draws",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="How often task varied asks for each fact, each time in other words and with other options.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Maximum number of questions of each task (and field) about two clips or scenes, in each split.",
)
@click.option("--split", help="Only use clips of this split: train, val or test.")
@click.option(
    "--where-not",
    "without",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Leave out clips whose row has this value. May be given several times.",
)
@old_option("--without", "--where-not", "without", multiple=True)
@click.option("--licence", metavar="TEXT", help="Licence of the clips whose rows state none.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Seed of the questions, their wording, their distractors and the order of options.",
)
@click.option("--skip-bad", "skip_unreadable", is_flag=True, help="Leave out files that cannot be read, and list them.")
@click.option("--workers", type=click.IntRange(1), help="Number of processes that decode.  [default: one per core]")
@check_option
@json_option
def command(**values: Any) -> None:
    """Build questions from the labels of COLLECTION.

    COLLECTION is a folder with one subfolder of clips per class, a CSV file (path, label), JSON lines (path, labels,
    and optionally category, group, split, language, emotion ...), or ESC-50, UrbanSound8K, FSD50K, VocalSound or
    RAVDESS as they are published.

    \b
    earwise build labels my-sounds/ --out my-sounds/questions.jsonl
    earwise build labels clips.csv --out train.jsonl --split train --tasks recognition
    earwise build labels ESC-50/ --out questions.jsonl --tasks order,count,odd_one_out --limit 500 --seed 1
    """
    from earwise.datasets.labels.build_questions import QuestionOptions, build_questions

    options = collect_options(LabelsCommandOptions, values)
    built = build_questions(
        options.collection,
        options.out,
        QuestionOptions(
            tasks=_split_commas(options.tasks),
            fields=_split_commas(options.fields) if options.fields else None,
            n_choices=options.n_choices,
            per_clip=options.per_clip,
            draws=options.draws,
            limit=options.limit,
            split=options.split,
            without=tuple(field_values(options.without, "--where-not")),
            licence=options.licence,
            seed=options.seed,
            skip_unreadable=options.skip_unreadable,
            workers=options.workers,
        ),
        note,
    )
    if options.as_json:
        print_json(
            {
                "out": str(options.out),
                "questions": built.questions,
                "clips": built.clips,
                "skipped": built.skipped,
                "tasks": built.tasks,
                "left_out": built.excluded,
            }
        )
    else:
        tasks = ", ".join(f"{number} {task}" for task, number in sorted(built.tasks.items()))
        skipped = f"; {built.skipped} files left out" if built.skipped else ""
        click.echo(f"{options.out}: {built.questions} questions about {built.clips} clips ({tasks}){skipped}")
    if options.run_checks:
        check_built([options.out], workers=options.workers)


def _split_commas(text: str) -> tuple[str, ...]:
    """The parts of a text that is separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
