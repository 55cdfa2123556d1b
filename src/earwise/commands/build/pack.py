"""`earwise build shards` and `earwise build parquet`: pack a manifest with its audio for streaming, and unpack it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from earwise.commands.build.check import check_built, optional_check_option
from earwise.commands.loading import find_manifest, json_option, print_json, refuse_existing
from earwise.commands.paths import FILE, NAME_OR_PATH
from earwise.errors import ConfigError

MB = 1 << 20


@click.command("shards", short_help="Manifest to WebDataset shards, and back.")
@click.argument("source", type=NAME_OR_PATH, metavar="MANIFEST|DIR")
@click.option("--out", "-o", required=True, type=FILE, help="Folder to write; or, from DIR, the manifest to write.")
@click.option(
    "--shard-mb", default=500, show_default=True, type=click.IntRange(1), help="Size of the audio in a shard, MiB."
)
@optional_check_option
@json_option
def shards(source: str, out: Path, shard_mb: int, run_checks: bool, as_json: bool) -> None:
    """Pack MANIFEST and its audio into tar shards (WebDataset), or unpack the shards in DIR.

    \b
    earwise build shards train.jsonl --out shards/
    earwise build shards shards/ --out again/train.jsonl
    """
    from earwise.data.webdataset import from_webdataset, to_webdataset

    if Path(source).is_dir():
        _unpack(from_webdataset, Path(source), out, run_checks, as_json)
    else:
        _pack(to_webdataset, source, out, shard_mb, as_json)


@click.command("parquet", short_help="Manifest to Parquet (Hugging Face layout), and back.")
@click.argument("source", type=NAME_OR_PATH, metavar="MANIFEST|DIR")
@click.option("--out", "-o", required=True, type=FILE, help="Folder to write; or, from DIR, the manifest to write.")
@click.option(
    "--shard-mb", default=500, show_default=True, type=click.IntRange(1), help="Size of the audio in a file, MiB."
)
@optional_check_option
@json_option
def parquet(source: str, out: Path, shard_mb: int, run_checks: bool, as_json: bool) -> None:
    """Pack MANIFEST and its audio into Parquet files with an Audio column, or unpack the files in DIR.

    \b
    earwise build parquet train.jsonl --out packed/       then: datasets.load_dataset("packed/")
    earwise build parquet packed/ --out again/train.jsonl
    """
    from earwise.data.parquet import from_parquet, to_parquet

    if Path(source).is_dir():
        _unpack(from_parquet, Path(source), out, run_checks, as_json)
    else:
        _pack(to_parquet, source, out, shard_mb, as_json)


def _pack(pack: Callable[..., list[dict[str, Any]]], source: str, out: Path, shard_mb: int, as_json: bool) -> None:
    refuse_existing(out)
    files = pack(find_manifest(source), out, shard_bytes=shard_mb * MB)
    rows, size = sum(file["rows"] for file in files), sum(file["bytes"] for file in files)
    if as_json:
        print_json({"out": str(out), "rows": rows, "bytes": size, "files": files})
    else:
        click.echo(f"{out}: {rows} rows, {size / MB:.1f} MiB of audio in {len(files)} files")


def _unpack(unpack: Callable[[Path, Path], int], folder: Path, out: Path, run_checks: bool, as_json: bool) -> None:
    if out.exists():
        raise ConfigError(f"{out}: already exists; choose another --out or delete it")
    count = unpack(folder, out)
    if as_json:
        print_json({"out": str(out), "rows": count})
    else:
        click.echo(f"{out}: {count} rows")
    if run_checks:
        check_built([out])
