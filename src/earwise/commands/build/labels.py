"""`earwise build labels`: a labelled collection into questions about one clip, two clips, and scenes made of it."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import after, check_option
from earwise.commands.loading import field_values, json_option, note, print_json
from earwise.errors import AudioError, ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from earwise.datasets.labels.acoustics import Facts
    from earwise.types import Example

FILE = click.Path(path_type=Path)


@click.command("labels", short_help="Labelled clips into questions.")
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
    help="Kinds of questions, parted by commas. Also: same, compare (two clips); order, count, louder, odd_one_out, "
    "overlap (recordings put together, written beside OUT).",
)
@click.option(
    "--fields",
    help="Facts to ask for: sound, instrument, language, emotion, gender, digit, words, kind, speaker, and compared "
    "by measurement loudness, pitch, duration, tempo; all by default.",
)
@click.option(
    "--n-choices", default=4, show_default=True, type=click.IntRange(2), help="Options of a multiple-choice question."
)
@click.option("--per-clip", type=click.IntRange(1), help="At most so many one-clip questions a clip, drawn by seed.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="At most so many questions of each task (and field) of two clips or scenes, in each split.",
)
@click.option("--split", help="Only clips of this split: train, val or test.")
@click.option(
    "--without",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Leave out clips whose row says so; may stand several times.",
)
@click.option("--licence", metavar="TEXT", help="Licence of the clips whose rows name none.")
@click.option(
    "--seed", default=0, show_default=True, help="Decides questions, wording, distractors and the order of options."
)
@click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be read, and say which.")
@click.option("--workers", type=click.IntRange(1), help="Processes that decode; one a core by default.")
@check_option
@json_option
def command(
    collection: Path,
    out: Path,
    tasks: str,
    fields: str | None,
    n_choices: int,
    per_clip: int | None,
    limit: int | None,
    split: str | None,
    without: tuple[str, ...],
    licence: str | None,
    seed: int,
    skip_bad: bool,
    workers: int | None,
    checked: bool,
    as_json: bool,
) -> None:
    """Turn COLLECTION into questions.

    COLLECTION is a folder with one folder of clips per class, a CSV file (path, label), JSON lines (path, labels, and
    where known category, group, split, language, emotion ...), or ESC-50, UrbanSound8K, FSD50K, VocalSound or RAVDESS
    as they are published.

    \b
    earwise build labels my-sounds/ --out my-sounds/questions.jsonl
    earwise build labels clips.csv --out train.jsonl --split train --tasks recognition
    earwise build labels ESC-50/ --out clip_questions.jsonl --tasks order,count,odd_one_out --limit 500 --seed 1
    """
    from earwise.data import manifest
    from earwise.datasets.labels import acoustics, clip_questions, pair_questions, question_templates, scenes
    from earwise.datasets.labels import collection as collections

    asked = _listed(tasks, (*clip_questions.TASKS, *pair_questions.TASKS, *scenes.TASKS), "task")
    named = None
    if fields:
        named = _listed(
            fields, tuple(dict.fromkeys((*clip_questions.FIELDS, *question_templates.SAME, *acoustics.FIELDS))), "field"
        )
    rows, root = collections.load(collection)
    rows = _without(rows, without)
    note(f"{len(rows)} labelled clips in {collection}")
    for line in collections.misspelt(rows):
        note(line)
    if licence:
        rows = [row if row.get("licence") else dict(row) | {"licence": licence} for row in rows]
    left_out = Counter[str]()
    bad = _unreadable(rows, root, collection, skip_bad)
    rows = [row for row in rows if row["path"] not in bad]
    facts: dict[str, Facts] = {}
    if {"compare", *scenes.TASKS} & set(asked):
        facts = _measured(rows, root, collection, split, skip_bad, workers)
    parts: list[Iterable[Example]] = []
    if single := [task for task in asked if task in clip_questions.TASKS]:
        parts.append(
            clip_questions.build(
                rows,
                root=root,
                seed=seed,
                tasks=single,
                fields=None if named is None else [field for field in named if field in clip_questions.FIELDS],
                n_choices=n_choices,
                per_clip=per_clip,
                split=split,
                left_out=left_out,
            )
        )
    if double := [task for task in asked if task in pair_questions.TASKS]:
        between = None if named is None else [f for f in named if f in question_templates.SAME or f in acoustics.FIELDS]
        parts.append(
            pair_questions.build(
                rows,
                root=root,
                facts=facts,
                seed=seed,
                tasks=double,
                fields=between,
                limit=limit,
                split=split,
                left_out=left_out,
            )
        )
    if composed := [task for task in asked if task in scenes.TASKS]:
        plan = scenes.plan(
            rows,
            facts,
            seed=seed,
            tasks=composed,
            n_choices=n_choices,
            limit=limit,
            split=split,
            left_out=left_out,
        )
        note(f"{len(plan)} recordings to put together")
        folder = out.parent / f"{out.stem}-clips"
        parts.append(scenes.write(plan, root, folder, failed=_left_out if skip_bad else None))
    counts = Counter[str]()
    total = manifest.write(out, _counted(chain.from_iterable(parts), counts, collection, asked))
    for reason, number in left_out.most_common():
        note(f"no question: {number} {reason}")
    if as_json:
        skipped = {"clips": len(rows), "skipped": len(bad)}
        print_json({"out": str(out), "questions": total, **skipped, "tasks": dict(counts), "left_out": dict(left_out)})
    else:
        shown = ", ".join(f"{number} {task}" for task, number in sorted(counts.items()))
        click.echo(
            f"{out}: {total} questions about {len(rows)} clips ({shown})"
            + (f"; {len(bad)} files left out" if bad else "")
        )
    if checked:
        after([out], workers=workers)


def _counted(
    examples: "Iterable[Example]", counts: Counter[str], where: Path, tasks: "Sequence[str]"
) -> "Iterator[Example]":
    """Pass examples on and count their tasks; nothing is written if there are none."""
    for example in examples:
        counts[example.task] += 1
        yield example
    if not counts:
        raise DataError(
            f"{where}: gave no question of tasks {', '.join(tasks)}; two clips need the same source and split, and a "
            "label or a difference beyond doubt, scenes need clips with one sound or instrument label each"
        )


def _measured(
    rows: "Sequence[Any]", root: Path, where: Path, split: str | None, skip: bool, workers: int | None
) -> "dict[str, Facts]":
    """What the waveforms say: path of a row -> facts."""
    from earwise.datasets.labels import acoustics
    from earwise.datasets.scan import clip_stats

    paths = [row["path"] for row in rows if split in (None, row["split"])]
    note(f"measuring {len(paths)} clips")
    facts = {}
    found = clip_stats.scan([root / path for path in paths], workers, fingerprint=acoustics.measure)
    for number, (path, clip) in enumerate(zip(paths, found, strict=True), 1):
        if not clip.error:
            facts[path] = clip.fingerprint
        elif skip:
            note(f"left out: {clip.error}")
        else:
            raise AudioError(f"{where}: {clip.error}, or say --skip-bad")
        if number % 2000 == 0:
            note(f"measured {number} of {len(paths)} clips")
    return facts


def _left_out(error: AudioError) -> None:
    note(f"left out a scene: {error}")


def _unreadable(rows: "Sequence[Any]", root: Path, where: Path, skip: bool) -> set[str]:
    """Paths of clips that are no readable audio, by a look at their headers."""
    from earwise.audio import probe

    bad: set[str] = set()
    for number, row in enumerate(rows, 1):
        try:
            probe(root / row["path"])
        except AudioError as error:
            if not skip:
                raise AudioError(f"{where}: {error}, or say --skip-bad") from error
            bad.add(row["path"])
            note(f"left out: {error}")
        if number % 2000 == 0:
            note(f"looked at {number} of {len(rows)} clips")
    return bad


def _without(rows: list[Any], conditions: tuple[str, ...]) -> list[Any]:
    """The rows that meet none of the conditions `field=value`."""
    for field, value in field_values(conditions, "--without"):
        kept = [row for row in rows if str(row.get(field)) != value]
        note(f"--without {field}={value}: {len(rows) - len(kept)} clips left out")
        rows = kept
    return rows


def _listed(text: str, known: "Sequence[str]", what: str) -> tuple[str, ...]:
    items = tuple(part.strip() for part in text.split(",") if part.strip())
    for item in items:
        if item not in known:
            raise ConfigError(f"{what} {item!r} is none of {', '.join(known)}")
    if not items:
        raise ConfigError(f"no {what} is named; choose out of {', '.join(known)}")
    return items
