"""`earwise build ...`: labelled collections into questions, and checks of what came out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import find_manifest, json_option, note, result
from earwise.errors import AudioError, ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwise.types import Example

FILE = click.Path(path_type=Path)


@click.group("build", short_help="Build and check training data.")
def group() -> None:
    """Turn labelled sounds into questions, and check data before it is trained on."""


@group.command("labels", short_help="Labelled clips into questions.")
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
    help="Kinds of questions, parted by commas.",
)
@click.option(
    "--fields",
    help="Facts to ask for: sound, instrument, language, emotion, gender, digit, words, kind; all by default.",
)
@click.option("--n-choices", default=4, show_default=True, help="Options of a multiple-choice question.")
@click.option("--per-clip", type=click.IntRange(1), help="At most so many questions a clip, drawn by seed.")
@click.option("--split", help="Only clips of this split: train, val or test.")
@click.option(
    "--without",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Leave out clips whose row says so; may stand several times.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Decides questions, wording, distractors and the order of options."
)
@click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be read, and say which.")
@json_option
def labels(
    collection: Path,
    out: Path,
    tasks: str,
    fields: str | None,
    n_choices: int,
    per_clip: int | None,
    split: str | None,
    without: tuple[str, ...],
    seed: int,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Turn COLLECTION into multiple-choice, yes/no, open and caption questions.

    COLLECTION is a folder with one folder of clips per class, a CSV file (path, label), or JSON lines (path, labels,
    and where known category, group, split, language, emotion ...).

    \b
    earwise build labels my-sounds/ --out my-sounds/questions.jsonl
    earwise build labels clips.csv --out train.jsonl --split train --tasks recognition
    earwise build labels esc10/manifest.jsonl --out questions.jsonl --per-clip 4 --seed 1
    """
    from earwise.build import collection as collections
    from earwise.build import labels as builder
    from earwise.data import manifest

    rows, root = collections.load(collection)
    rows = _without(rows, without)
    note(f"{len(rows)} labelled clips in {collection}")
    bad = _unreadable(rows, root, collection, skip_bad)
    rows = [row for row in rows if row["path"] not in bad]
    examples = builder.build(
        rows,
        root=root,
        seed=seed,
        tasks=_listed(tasks),
        fields=_listed(fields) if fields else None,
        n_choices=n_choices,
        per_clip=per_clip,
        split=split,
    )
    count = manifest.write(out, examples)
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.task] = counts.get(example.task, 0) + 1
    if as_json:
        result({"out": str(out), "questions": count, "clips": len(rows), "skipped": len(bad), "tasks": counts})
    else:
        shown = ", ".join(f"{number} {task}" for task, number in sorted(counts.items()))
        click.echo(
            f"{out}: {count} questions about {len(rows)} clips ({shown})"
            + (f"; {len(bad)} files left out" if bad else "")
        )


@group.command("check", short_help="Check a manifest: bias, leaks, copies, silence.")
@click.argument("manifests", nargs=-1, required=True, metavar="MANIFEST...")
@click.option("--strict", is_flag=True, help="Fail (exit code 2) if there is any problem.")
@click.option(
    "--listen/--no-listen",
    default=True,
    show_default=True,
    help="Also read every sound: silence, copies across splits, broken files.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Of the halves that the listener without ears learns from and is tested on.",
)
@json_option
def check(manifests: tuple[str, ...], strict: bool, listen: bool, seed: int, as_json: bool) -> None:
    """Check MANIFESTs together: can a deaf model guess the answers, does a recording stand in two splits?

    \b
    earwise build check train.jsonl val.jsonl
    earwise build check starter:train starter:val --strict
    """
    from earwise.build import checks
    from earwise.data import manifest

    examples: list[Example] = []
    for name in manifests:
        examples += manifest.read(find_manifest(name), check_files=listen)
    report = checks.check(examples, listen=listen, seed=seed)
    if as_json:
        result(report)
    else:
        _print_check(report, manifests)
    if strict and report["problems"]:
        raise DataError(f"{', '.join(manifests)}: {report['problems'][0]} ({len(report['problems'])} problems in all)")


def _print_check(report: dict[str, Any], manifests: "Sequence[str]") -> None:
    click.echo(f"{', '.join(manifests)}: {report['n']} rows")
    for listener, rate in report["bias"].items():
        click.echo(
            f"  without ears, {listener}: right {rate['accuracy']:.3f} of {rate['n']:.0f}, chance {rate['chance']:.3f}"
        )
    for problem in report["problems"]:
        click.echo(f"  problem: {problem}")
    click.echo("  no problems" if not report["problems"] else f"  {len(report['problems'])} problems")


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
    for condition in conditions:
        field, equals, value = condition.partition("=")
        kept = [row for row in rows if str(row.get(field)) != value]
        if not equals:
            raise ConfigError(f"--without {condition!r} is not field=value; write for example --without source=NAME")
        note(f"--without {condition}: {len(rows) - len(kept)} clips left out")
        rows = kept
    return rows


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
