"""`earwise build check`, and the option `--check` with which every builder checks what it wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from earwise.commands.loading import find_manifest, json_option, note, open_engine, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, NAME_OR_PATH
from earwise.errors import ConfigError, DataError

check_option = click.option(
    "--check/--no-check",
    "run_checks",
    default=True,
    show_default=True,
    help="Check the manifest that was built (bias, leaks, copies, silence) and write a page about it beside it.",
)
optional_check_option = click.option(
    "--check/--no-check", "run_checks", default=False, show_default=True,
    help="Also check the manifest that is written, as `earwise build check` does.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckCommandOptions:
    """Options of `earwise build check`; see the help texts below."""

    manifests: tuple[str, ...]
    strict: bool
    read_audio: bool
    benchmarks: tuple[str, ...]
    page: Path | None
    fingerprints_out: Path | None
    hashes_out: Path | None
    blind_model: str | None
    filtered_out: Path | None
    workers: int | None
    seed: int
    as_json: bool


@click.command("check", short_help="Check a manifest: bias, leaks, copies, silence.")
@click.argument("manifests", nargs=-1, required=True, type=NAME_OR_PATH, metavar="MANIFEST...")
@click.option("--strict", is_flag=True, help="Fail (exit code 2) if there is any problem.")
@click.option(
    "--listen/--no-listen",
    "read_audio",
    default=True,
    show_default=True,
    help="Also decode the audio: silence, copies and near copies, unreadable files, levels, durations.",
)
@click.option(
    "--against",
    "benchmarks",
    multiple=True,
    metavar="BENCHMARK",
    type=NAME_OR_PATH,
    help="Benchmark that must not be in the data: its question file, a manifest, or a file written with --prints or "
    "--asked. May be given several times.",
)
@click.option("--html", "page", type=FILE, help="Page to write, with the report as JSON beside it.")
@click.option(
    "--prints", "fingerprints_out", type=FILE, help="File to write with fingerprints of all clips, for --against."
)
@click.option(
    "--asked", "hashes_out", type=FILE, help="File to write with hashes of all questions and videos, for --against."
)
@click.option(
    "--deaf",
    "blind_model",
    metavar="MODEL",
    type=NAME_OR_PATH,
    help="Also ask this model every question, with silence as the audio.",
)
@click.option(
    "--filtered",
    "filtered_out",
    type=FILE,
    help="With --deaf: manifest to write with the rows that the model does not answer without the audio.",
)
@click.option("--workers", type=click.IntRange(1), help="Number of processes that decode.  [default: one per core]")
@click.option("--seed", default=0, show_default=True, help="Seed of the text-only baselines.")
@json_option
def command(**values: Any) -> None:
    """Check MANIFESTs together: can questions be answered without the audio, is a recording in two splits?

    \b
    earwise build check train.jsonl val.jsonl --html checks.html
    earwise build check starter:train starter:val --strict
    earwise build check train.jsonl --against mmau-test-mini.json --against mmar.prints
    """
    from earwise.datasets.checks.check_manifests import BlindModel, CheckOptions, check_manifests

    options = collect_options(CheckCommandOptions, values)
    if options.filtered_out is not None and options.blind_model is None:
        raise ConfigError("--filtered needs a model that answers without the audio; name one with --deaf")
    names = ", ".join(options.manifests)
    blind = None
    if (model := options.blind_model) is not None:
        blind = BlindModel(model, lambda: open_engine(model))
    report = check_manifests(
        [find_manifest(name) for name in options.manifests],
        CheckOptions(
            read_audio=options.read_audio,
            benchmarks=tuple(find_manifest(name) for name in options.benchmarks),
            page=options.page,
            fingerprints_out=options.fingerprints_out,
            hashes_out=options.hashes_out,
            filtered_out=options.filtered_out,
            workers=options.workers,
            seed=options.seed,
        ),
        title=names,
        blind=blind,
        notify=note,
    )
    if options.as_json:
        print_json(report)
    else:
        _print_report(report, names, options.page)
    if count := report["bad_rows"]:
        raise DataError(f"{names}: {count} rows cannot be used, as listed; correct them, or take them out")
    if options.strict and report["problems"]:
        raise DataError(f"{names}: {report['problems'][0]} ({len(report['problems'])} problems in all)")


def check_built(manifests: Sequence[Path], *, read_audio: bool = True, workers: int | None = None) -> None:
    """Check the manifests that a builder wrote, as `--check` asks for; problems are printed on stderr.

    Args:
        manifests: All manifests that were written; the page of `a/b.jsonl` is `a/b.checks.html`.
        read_audio: Whether to decode the audio; False if the audio files need not exist.
        workers: Number of processes that decode; None for one per core.
    """
    from earwise.datasets.checks.check_manifests import check_built_manifests

    check_built_manifests(manifests, read_audio=read_audio, workers=workers, notify=note)


def _print_report(report: dict[str, Any], names: str, page: Path | None) -> None:
    click.echo(f"{names}: {report['n']} rows")
    for baseline, score in report["bias"].items():
        click.echo(
            f"  without audio, {baseline}: accuracy {score['accuracy']:.3f} on {score['n']:.0f} questions, "
            f"chance {score['chance']:.3f}"
        )
    for problem in report["problems"]:
        click.echo(f"  problem: {problem}")
    click.echo("  no problems" if not report["problems"] else f"  {len(report['problems'])} problems")
    if page is not None:
        click.echo(f"  {page}")
