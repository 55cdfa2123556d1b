"""`earwise build scan | shards | parquet`: what is done to collections too large to look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from earwise.commands.build.check import after
from earwise.commands.loading import find_manifest, json_option, note, refuse_existing, result
from earwise.errors import ConfigError, DataError

FILE = click.Path(path_type=Path)
TELL_EVERY = 2000  # clips
MB = 1 << 20
check_option = click.option(
    "--check/--no-check", "checked", default=False, show_default=True,
    help="Also check the manifest that is written, as `earwise build check` does.",
)  # fmt: skip


@click.command("scan", short_help="Decode every sound once: broken files, loudness, silence.")
@click.argument("name", metavar="MANIFEST")
@click.option("--out", "-o", type=FILE, help="Log of one JSON object a clip; what stands there is not decoded again.")
@click.option("--keep", type=FILE, help="Manifest to write: the rows whose sounds can all be read.")
@click.option("--workers", "-j", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option(
    "--engine", type=click.Choice(("processes", "ray")), default="processes", show_default=True, help="Who decodes."
)
@click.option("--strict", is_flag=True, help="Fail (exit code 2) if any file cannot be read.")
@check_option
@json_option
def scan(
    name: str,
    out: Path | None,
    keep: Path | None,
    workers: int | None,
    engine: Any,
    strict: bool,
    checked: bool,
    as_json: bool,
) -> None:
    """Decode every sound of MANIFEST on several processes; what cannot be read is listed and counted.

    \b
    earwise build scan train.jsonl --out train.scan.jsonl
    earwise build scan train.jsonl --keep good.jsonl --workers 8
    """
    from earwise.data import manifest
    from earwise.datasets.scan.scan import tally

    path = find_manifest(name)
    for file in (out, keep):
        if file is not None and file.resolve() == path.resolve():
            raise ConfigError(f"{file} is the manifest itself; choose another name")
    summary, broken = tally(path, out, workers=workers, engine=engine, on_broken=note, on_progress=_tell)
    if keep is not None:
        rows = (row for row in manifest.iterate(path) if broken.isdisjoint(map(str, row.audio_paths)))
        summary["kept"] = manifest.write(keep, rows)
    if as_json:
        result(summary)
    else:
        _print_scan(path, summary, keep)
    if checked and keep is not None:
        after([keep], workers=workers)
    if strict and broken:
        raise DataError(f"{path}: {len(broken)} of {summary['clips']} sounds cannot be read; see the lines above")


def _tell(clips: int, seconds: float) -> None:
    if clips % TELL_EVERY == 0:
        note(f"{clips} sounds decoded, {clips / seconds:.0f} a second")


def _print_scan(path: Path, summary: dict[str, Any], keep: Path | None) -> None:
    click.echo(
        f"{path}: {summary['clips']} sounds, {summary['hours']:.2f} h; {summary['broken']} cannot be read, "
        f"{summary['silent']} are silent ({summary['decoded']} decoded now, {summary['clips_per_s']:.0f} a second)"
    )
    if summary["duration_s"]:
        shortest, mean, longest = summary["duration_s"]
        low, median, high = summary["loudness_db"]
        click.echo(f"  length {shortest:.2f} to {longest:.2f} s, mean {mean:.2f} s")
        click.echo(f"  loudness {median} dB of full scale, nine of ten from {low} to {high}")
        click.echo(f"  silence within a sound: half of them have {summary['silence_share'][1]:.0%} or less")
    if summary["measured_in_part"]:
        click.echo(f"  {summary['measured_in_part']} are longer than what is measured, their first 600 s")
    if keep is not None:
        click.echo(f"{keep}: {summary['kept']} rows")


@click.command("shards", short_help="Manifest to WebDataset shards, and back.")
@click.argument("source", metavar="MANIFEST|DIR")
@click.option("--out", "-o", required=True, type=FILE, help="Folder to fill; or, from DIR, the manifest to write.")
@click.option("--shard-mb", default=500, show_default=True, type=click.IntRange(1), help="Sound in a shard, MiB.")
@check_option
@json_option
def shards(source: str, out: Path, shard_mb: int, checked: bool, as_json: bool) -> None:
    """Pack MANIFEST and its sounds into tar shards (WebDataset), or unpack those in DIR.

    \b
    earwise build shards train.jsonl --out shards/
    earwise build shards shards/ --out again/train.jsonl
    """
    from earwise.data.shards import from_webdataset, to_webdataset

    _convert(source, out, shard_mb * MB, to_webdataset, from_webdataset, checked, as_json)


@click.command("parquet", short_help="Manifest to Parquet (Hugging Face layout), and back.")
@click.argument("source", metavar="MANIFEST|DIR")
@click.option("--out", "-o", required=True, type=FILE, help="Folder to fill; or, from DIR, the manifest to write.")
@click.option("--shard-mb", default=500, show_default=True, type=click.IntRange(1), help="Sound in a file, MiB.")
@check_option
@json_option
def parquet(source: str, out: Path, shard_mb: int, checked: bool, as_json: bool) -> None:
    """Pack MANIFEST and its sounds into Parquet files with an Audio column, or unpack those in DIR.

    \b
    earwise build parquet train.jsonl --out packed/       then: datasets.load_dataset("packed/")
    earwise build parquet packed/ --out again/train.jsonl
    """
    from earwise.data.parquet import from_parquet, to_parquet

    _convert(source, out, shard_mb * MB, to_parquet, from_parquet, checked, as_json)


def _convert(
    source: str,
    out: Path,
    shard_bytes: int,
    pack: Callable[..., list[dict[str, Any]]],
    unpack: Callable[[Path, Path], int],
    checked: bool,
    as_json: bool,
) -> None:
    """A folder is unpacked, anything else is packed."""
    if Path(source).is_dir():
        if out.exists():
            raise ConfigError(f"{out}: already exists; choose another --out or delete it")
        count = unpack(Path(source), out)
        if as_json:
            result({"out": str(out), "rows": count})
        else:
            click.echo(f"{out}: {count} rows")
        if checked:
            after([out])
        return
    refuse_existing(out)
    made = pack(find_manifest(source), out, shard_bytes=shard_bytes)
    rows, size = sum(one["rows"] for one in made), sum(one["bytes"] for one in made)
    if as_json:
        result({"out": str(out), "rows": rows, "bytes": size, "files": made})
    else:
        click.echo(f"{out}: {rows} rows, {size / MB:.1f} MiB of sound in {len(made)} files")
