"""`earwise build source`, `avqa` and `join`: public data sets, as published, into manifests, and these into one."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import field_values, find_manifest, json_option, note, print_json
from earwise.commands.options import collect_options, old_option
from earwise.commands.paths import FILE, NAME_OR_PATH
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.data.sources.clothoaqa import Votes
    from earwise.datasets.published.join_manifests import ManifestPart
    from earwise.datasets.published.missing_audio import OnMissing

out_option = click.option("--out", "-o", required=True, type=FILE, help="Manifest to write (JSON lines).")
audio_option = click.option(
    "--audio-root", type=FILE, help="Folder that audio paths start from.  [default: the folder of the data file]"
)
missing_option = click.option(
    "--missing",
    "on_missing",
    type=click.Choice(["skip", "keep", "error"]),
    default="skip",
    show_default=True,
    help="What to do with rows whose audio file does not exist.",
)
split_option = click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="Split of the file.  [default: from the file's name]"
)


@dataclass(frozen=True, slots=True)
class SourceCommandOptions:
    """Options of `earwise build source`; see the help texts below."""

    name: str
    path: Path
    out: Path
    audio_root: Path | None
    split: str | None
    on_missing: "OnMissing"
    n_choices: int | None
    votes: "Votes | None"
    seed: int
    run_checks: bool
    as_json: bool


@click.command("source", short_help="A public data set into a manifest.")
@click.argument("name")
@click.argument("path", type=FILE)
@out_option
@audio_option
@split_option
@missing_option
@click.option("--n-choices", type=click.IntRange(2), help="Give open questions this many balanced options.")
@old_option("--choices", "--n-choices", "n_choices", type=click.IntRange(2))
@click.option(
    "--votes",
    type=click.Choice(["majority", "all", "unanimous"]),
    help="For clothoaqa: how the answers of the three annotators are merged.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the added options and their order.")
@check_option
@json_option
def source(**values: Any) -> None:
    """Convert PATH, a file of the data set NAME as its authors publish it, to a manifest.

    NAME is one of audiocaps, clotho, clothoaqa, entailment, adiff, reasonaqa, avqa, musicbench, meld, audioset,
    wavcaps, audioskills, audiomcq, vocalsound, librispeech, common-voice, covost2, multilingual-alpaca-speech,
    voice-assistant, own (paths and captions of your clips), or your own file.py:function. Rows that cannot be used are
    listed in OUT.skipped.txt.

    \b
    earwise build source clothoaqa clotho_aqa_train.csv --votes majority --out clothoaqa.jsonl
    earwise build source musicbench MusicBench_train.json --n-choices 4 --out musicbench.jsonl
    """
    from earwise.datasets.published.convert_source import SourceOptions, convert_source

    options = collect_options(SourceCommandOptions, values)
    source_options = SourceOptions(
        audio_root=options.audio_root,
        split=options.split,
        on_missing=options.on_missing,
        n_choices=options.n_choices,
        votes=options.votes,
        seed=options.seed,
    )
    converted = convert_source(options.name, options.path, options.out, source_options, note)
    extra = {"left_out_for_balance": converted.num_unbalanced} if options.n_choices else {}
    print_manifest_summary(
        ManifestSummary(
            options.out, converted.num_rows, converted.num_skipped, converted.tasks, converted.licences, extra
        ),
        options.as_json,
    )
    if options.run_checks:
        check_built([options.out], read_audio=options.on_missing != "keep")


@click.command("avqa", short_help="AVQA's questions for models without video input.")
@click.argument("path", type=FILE)
@out_option
@audio_option
@split_option
@missing_option
@click.option(
    "--drop",
    multiple=True,
    type=click.Choice(["visual", "colour"]),
    help="Leave out questions about the picture alone, or about colours. May be given twice; R1-AQA drops none.",
)
@check_option
@json_option
def avqa(
    path: Path,
    out: Path,
    audio_root: Path | None,
    split: str | None,
    on_missing: "OnMissing",
    drop: tuple[str, ...],
    run_checks: bool,
    as_json: bool,
) -> None:
    """Convert PATH, AVQA's train_qa.json or R1-AQA's JSON lines, to a manifest; "video" becomes "audio" in questions.

    \b
    earwise build avqa train_qa.json --audio-root wav/ --out avqa/train.jsonl
    earwise build avqa train_qa.json --audio-root wav/ --drop visual --drop colour --out avqa/filtered.jsonl
    """
    from earwise.datasets.published.convert_source import SourceOptions, convert_source

    source_options = SourceOptions(audio_root=audio_root, split=split, on_missing=on_missing, drop=drop)
    converted = convert_source("avqa", path, out, source_options, note)
    print_manifest_summary(
        ManifestSummary(
            out,
            converted.num_rows,
            converted.num_skipped,
            converted.tasks,
            converted.licences,
            {"dropped": dict(converted.num_dropped)},
        ),
        as_json,
    )
    if run_checks:
        check_built([out], read_audio=on_missing != "keep")


@click.command("join", short_help="Several manifests into one: a part of each, with a held-out share.")
@click.argument("manifests", nargs=-1, required=True, type=NAME_OR_PATH, metavar="MANIFEST[=COUNT]...")
@out_option
@click.option(
    "--where", "conditions", multiple=True, metavar="FIELD=VALUE",
    help="Only rows whose task, category, source, split or language is VALUE; the same field twice: either value.",
)  # fmt: skip
@click.option("--clips", "count_clips", is_flag=True, help="COUNT counts clips, each with all its rows, and not rows.")
@click.option(
    "--val-share", default=0.0, show_default=True,
    help="Share of the groups (speakers, videos ...) whose training rows get the split val.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of what is drawn and held out.")
@check_option
@json_option
def join(
    manifests: tuple[str, ...],
    out: Path,
    conditions: tuple[str, ...],
    count_clips: bool,
    val_share: float,
    seed: int,
    run_checks: bool,
    as_json: bool,
) -> None:
    """Join manifests that other builders wrote; with =COUNT, that many rows of a manifest are drawn at random.

    \b
    earwise build join avqa/heard.jsonl=5000 musicbench.jsonl=5000 --where task=multiple_choice --out train.jsonl
    earwise build join ja.jsonl de.jsonl fr.jsonl --val-share 0.02 --out xs-cot/manifest.jsonl
    """
    from earwise.datasets.published.join_manifests import JoinOptions, join_manifests

    options = JoinOptions(_parse_conditions(conditions), count_clips, val_share, seed)
    joined = join_manifests([_parse_part(name) for name in manifests], out, options)
    extra = {"rows_of_manifests": joined.rows_of_parts, "splits": dict(joined.splits)}
    print_manifest_summary(ManifestSummary(out, joined.num_rows, 0, joined.tasks, joined.licences, extra), as_json)
    if run_checks:
        check_built([out])


def _parse_part(name: str) -> "ManifestPart":
    """Manifest and count of an argument MANIFEST or MANIFEST=COUNT."""
    from earwise.datasets.published.join_manifests import ManifestPart

    path, equals, count = name.rpartition("=")
    if not equals or Path(name).exists():
        return ManifestPart(find_manifest(name))
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"{name!r}: {count!r} is not a number of rows; write MANIFEST=COUNT")
    return ManifestPart(find_manifest(path), int(count))


def _parse_conditions(conditions: tuple[str, ...]) -> dict[str, list[str]]:
    """Field -> the values that the options `--where FIELD=VALUE` name."""
    values: dict[str, list[str]] = {}
    for name, value in field_values(conditions, "--where"):
        values.setdefault(name, []).append(value)
    return values


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """What is printed about a manifest that was built from published files."""

    out: Path
    num_rows: int
    num_skipped: int
    tasks: Counter[str]
    licences: Counter[str]
    extra: Mapping[str, object]
    """Further values to print, by their JSON key."""


def print_manifest_summary(
    summary: ManifestSummary, as_json: bool, json_extra: Mapping[str, object] | None = None
) -> None:
    """Print a summary as text, or as one JSON object.

    Args:
        summary: What to print.
        as_json: Whether to print JSON.
        json_extra: Further values of the JSON object; None for none.
    """
    if as_json:
        print_json(
            {
                "out": str(summary.out),
                "rows": summary.num_rows,
                "skipped": summary.num_skipped,
                "tasks": dict(summary.tasks),
                "licences": dict(summary.licences),
                **summary.extra,
                **(json_extra or {}),
            }
        )
        return
    tasks = ", ".join(f"{number} {task}" for task, number in sorted(summary.tasks.items()))
    click.echo(f"{summary.out}: {summary.num_rows} rows ({tasks}); {summary.num_skipped} left out")
    for name, value in summary.extra.items():
        click.echo(f"  {name.replace('_', ' ')}: {value}")
    for licence, number in summary.licences.items():
        click.echo(f"  licence of {number} rows: {licence}")
