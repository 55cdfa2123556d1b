"""`earwise build scan`: decode every clip of a manifest once, to find unreadable files and measure the others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, optional_check_option
from earwise.commands.loading import find_manifest, json_option, note, print_json
from earwise.commands.options import collect_options, old_option
from earwise.commands.paths import FILE, NAME_OR_PATH
from earwise.errors import DataError

if TYPE_CHECKING:
    from earwise.datasets.scan.clip_stats import Backend


@dataclass(frozen=True, slots=True)
class ScanCommandOptions:
    """Options of `earwise build scan`; see the help texts below."""

    name: str
    log: Path | None
    keep: Path | None
    workers: int | None
    backend: "Backend"
    strict: bool
    run_checks: bool
    as_json: bool


@click.command("scan", short_help="Decode every clip once: unreadable files, levels, silence.")
@click.argument("name", type=NAME_OR_PATH, metavar="MANIFEST")
@click.option(
    "--out", "-o", "log", type=FILE, help="Log with one JSON object per clip; clips in it are not decoded again."
)
@click.option("--keep", type=FILE, help="Manifest to write with the rows whose audio files can all be read.")
@click.option("--workers", "-j", type=click.IntRange(1), help="Number of processes.  [default: one per core]")
@click.option(
    "--backend",
    type=click.Choice(("processes", "ray")),
    default="processes",
    show_default=True,
    help="Decode on processes of this machine, or on a Ray cluster.",
)
@old_option("--engine", "--backend", "backend", type=click.Choice(("processes", "ray")))
@click.option("--strict", is_flag=True, help="Fail (exit code 2) if any file cannot be read.")
@optional_check_option
@json_option
def command(**values: Any) -> None:
    """Decode every audio file of MANIFEST on several processes; list and count the files that cannot be read.

    \b
    earwise build scan train.jsonl --out train.scan.jsonl
    earwise build scan train.jsonl --keep good.jsonl --workers 8
    """
    from earwise.datasets.scan.scan_manifest import ScanOptions, scan_manifest

    options = collect_options(ScanCommandOptions, values)
    path = find_manifest(options.name)
    scan_options = ScanOptions(options.log, options.keep, options.workers, options.backend)
    summary, unreadable = scan_manifest(path, scan_options, note)
    if options.as_json:
        print_json(summary)
    else:
        _print_scan(path, summary, options.keep)
    if options.run_checks and options.keep is not None:
        check_built([options.keep], workers=options.workers)
    if options.strict and unreadable:
        raise DataError(
            f"{path}: {len(unreadable)} of {summary['clips']} audio files cannot be read; see the lines above"
        )


def _print_scan(path: Path, summary: dict[str, Any], keep: Path | None) -> None:
    click.echo(
        f"{path}: {summary['clips']} clips, {summary['hours']:.2f} h; {summary['broken']} cannot be read, "
        f"{summary['silent']} are silent ({summary['decoded']} decoded now, {summary['clips_per_s']:.0f} per second)"
    )
    if summary["duration_s"]:
        shortest, mean, longest = summary["duration_s"]
        low, median, high = summary["loudness_db"]
        click.echo(f"  length {shortest:.2f} to {longest:.2f} s, mean {mean:.2f} s")
        click.echo(f"  level {median} dB of full scale (median), 90 % of the clips from {low} to {high}")
        click.echo(f"  silence within a clip: {summary['silence_share'][1]:.0%} (median)")
    if summary["measured_in_part"]:
        click.echo(f"  {summary['measured_in_part']} are longer than 600 s; only their first 600 s were measured")
    if keep is not None:
        click.echo(f"{keep}: {summary['kept']} rows")
