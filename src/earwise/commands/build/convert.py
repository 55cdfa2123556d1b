"""`earwise build convert`: data sets of other programs into a manifest, and a manifest into their forms."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from earwise.commands.build.check import check_built, optional_check_option
from earwise.commands.loading import STYLES, field_values, find_manifest, json_option, note, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, NAME_OR_PATH
from earwise.errors import ConfigError

MANIFEST = "manifest"
# The keys of WRITERS in data/interchange/writers/exporting.py and of FORMS in writers/chat/forms.py, repeated here
# because those modules import large ones. A test compares them.
CHAT_FORMS = (
    "openai", "audio-url", "messages", "swift", "sharegpt", "audio-flamingo", "query", "alpaca", "prompt", "question",
)  # fmt: skip
FORMS = (MANIFEST, *CHAT_FORMS, "parquet", "datasets", "webdataset", "csv", "tsv", "nemo", "lhotse", "kaldi")


@dataclass(frozen=True, slots=True)
class ConvertCommand:
    """Options of `earwise build convert`; see the help texts below."""

    source: str
    form: str
    out: Path
    columns: tuple[str, ...]
    prompt: str | None
    split: str | None
    config: str | None
    style: str | None
    val_share: float
    skip_bad: bool
    run_checks: bool
    as_json: bool


@click.command("convert", short_help="Data sets of other programs to a manifest, and back.")
@click.argument("source", type=NAME_OR_PATH, metavar="IN")
@click.option("--to", "form", type=click.Choice(FORMS), default=MANIFEST, show_default=True, help="Form to write.")
@click.option("--out", "-o", required=True, type=FILE, help="File to write; a folder for forms of several files.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=COLUMN",
    help="Column of IN that holds a field (id, audio, question, choices, answer ...), where its name does not say so. "
    "May be given several times.",
)
@click.option("--prompt", metavar="TEXT", help="Question of rows that have none.")
@click.option("--split", help="Only this split of IN.  [default: all]")
@click.option("--config", help="Configuration (subset) of a data set on a hub.")
@click.option(
    "--style",
    type=click.Choice(STYLES),
    help="For rows of conversations: word question, options and replies in this prompt style, so that another program "
    "trains the same text.  [default: the bare question, with options in a field of their own]",
)
@click.option(
    "--val-share",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the groups (or clips) that is held out as split val, if IN states no split.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be used, and list them in OUT.skipped.txt.")
@optional_check_option
@json_option
def command(**values: Any) -> None:
    """Convert IN to a manifest with its clips, or to the form that --to names.

    IN is a manifest, rows of conversations (JSON lines), a CSV or TSV table, Parquet files, a folder that `datasets`
    saved, hf://datasets/ORG/NAME[@REVISION], tar shards (WebDataset), or a manifest of NeMo, lhotse or Kaldi.

    \b
    earwise build convert questions.csv --column question=Frage --out questions.jsonl
    earwise build convert "hf://datasets/org/name@main" --split test --out test.jsonl
    earwise build convert questions.jsonl --to lhotse --out lhotse/
    earwise build convert questions.jsonl --to swift --style answer --out swift.jsonl
    """
    chosen = collect_options(ConvertCommand, values)
    if chosen.style is not None and chosen.form not in CHAT_FORMS:
        raise ConfigError(f"--style words rows of conversations; --to {chosen.form} keeps the fields as they are")
    if chosen.out.exists():
        raise ConfigError(f"{chosen.out}: already exists; choose another --out or delete it")
    count, skipped = _convert(chosen)
    if chosen.as_json:
        print_json({"out": str(chosen.out), "form": chosen.form, "rows": count, "skipped": skipped})
    else:
        left_out = f"; {skipped} left out, see {chosen.out}.skipped.txt" if skipped else ""
        click.echo(f"{chosen.out}: {count} rows{left_out}")
    if chosen.run_checks and chosen.form == MANIFEST:
        check_built([chosen.out])


def _convert(chosen: ConvertCommand) -> tuple[int, int]:
    """Convert; returns the numbers of rows that were written and left out."""
    from earwise.data.interchange.detection import check_columns, find_dataset
    from earwise.data.interchange.importing import ImportOptions, cached_manifest, import_dataset
    from earwise.data.sources.skip_log import SkipLog

    columns = dict(field_values(chosen.columns, "--column"))
    check_columns(columns)
    location = find_dataset(chosen.source, Path())
    if location is None:
        _refuse_unused(chosen)
        path = find_manifest(chosen.source)
        return _copy_manifest(path, chosen.out) if chosen.form == MANIFEST else _write_form(path, chosen), 0
    location = replace(
        location,
        columns={**location.columns, **columns},
        prompt=chosen.prompt or location.prompt,
        split=chosen.split or location.split,
        config=chosen.config or location.config,
    )
    if chosen.form != MANIFEST:
        return _write_form(cached_manifest(location), chosen), 0
    if not chosen.skip_bad:
        return import_dataset(location, chosen.out, ImportOptions(val_share=chosen.val_share)), 0
    with SkipLog(chosen.out, note) as skip_log:
        options = ImportOptions(on_skip=skip_log, val_share=chosen.val_share)
        return import_dataset(location, chosen.out, options), skip_log.count


def _write_form(path: Path, chosen: ConvertCommand) -> int:
    """Write a manifest in the form of another program; returns the number of rows."""
    if chosen.form in CHAT_FORMS:
        from earwise.data.interchange.writers.chat.exporting import write_chat

        return write_chat(path, chosen.out, chosen.form, style=chosen.style, notify=note)
    from earwise.data.interchange.writers.exporting import WRITERS

    return WRITERS[chosen.form](path, chosen.out)


def _copy_manifest(path: Path, out: Path) -> int:
    """Write a manifest, or rows of conversations, as a manifest at another place."""
    from earwise.data import manifest

    return manifest.write(out, manifest.iterate(path, check_files=True))


def _refuse_unused(chosen: ConvertCommand) -> None:
    """Refuse options that only apply to tables and data sets."""
    for name, value in (
        ("--column", chosen.columns), ("--prompt", chosen.prompt), ("--config", chosen.config),
        ("--val-share", chosen.val_share),
    ):  # fmt: skip
        if value:
            raise ConfigError(f"{name} is for tables and data sets; {chosen.source} is a manifest, or is not there")
