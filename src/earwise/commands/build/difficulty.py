"""`earwise build difficulty`: pass rates of a model on a manifest, for curricula and filters."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import STYLES, find_manifest, json_option, model_option, note, open_engine, print_json
from earwise.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwise.audio import LongAudio
    from earwise.types import Example

FILE = click.Path(path_type=Path)


@click.command("difficulty", short_help="How often does a model get each question right?")
@click.argument("name", metavar="MANIFEST")
@click.option("--out", "-o", required=True, type=FILE, help="Manifest to write, with pass rates.")
@model_option
@click.option("--attempts", default=16, show_default=True, type=click.IntRange(1), help="Answers drawn for each item.")
@click.option(
    "--style", default="answer", show_default=True, type=click.Choice(STYLES), help="Wording of the question."
)
@click.option("--reward", default="accuracy", show_default=True, help="An attempt is right if this reward is 1.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0))
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@click.option("--drop-unsolved", is_flag=True, help="Leave out items that no attempt answered (SARI: 0 of 16).")
@click.option("--drop-solved", is_flag=True, help="Leave out items that every attempt answered: no gradient in GRPO.")
@click.option(
    "--long-audio",
    default="error",
    show_default=True,
    type=click.Choice(["error", "truncate", "chunk"]),
    help="For clips longer than the model hears: an error, hear the beginning, or hear several clips in a row.",
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Items tried together.")
@click.option("--log", "log_folder", type=FILE, help="Folder of the attempts; beside the manifest by default.")
@click.option("--shard", metavar="I/N", help="Try only this part of the clips and write no manifest; see above.")
@check_option
@json_option
def command(
    name: str,
    out: Path,
    model: str,
    attempts: int,
    style: str,
    reward: str,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    drop_unsolved: bool,
    drop_solved: bool,
    long_audio: "LongAudio",
    batch: int,
    log_folder: Path | None,
    shard: str | None,
    run_checks: bool,
    as_json: bool,
) -> None:
    """Draw 16 answers to every row of MANIFEST and write it again with `difficulty`, `pass_count` and `pass_rate`.

    Each sound is heard once for all attempts. Killed and started again, it tries nothing twice. On many machines: the
    same command with --shard 1/8 ... 8/8, then once without --shard on the folder with all their logs.

    \b
    earwise build difficulty questions.jsonl --model embedded --out rated.jsonl
    earwise build difficulty starter:train --drop-unsolved --out starter-rated.jsonl
    """
    from earwise.data import manifest
    from earwise.datasets import difficulty
    from earwise.datasets.teachers.keyed_log import UNSHARDED, parse_shard

    part = parse_shard(shard)
    how = difficulty.AttemptSettings(attempts, style, reward, temperature, max_new_tokens, seed)
    examples = _ours(manifest.read(find_manifest(name), check_files=False), part)
    unlabelled = [example for example in examples if not example.answer]
    examples = [example for example in examples if example.answer]
    if not examples:
        raise DataError(f"{name}: no row with an answer to try; give the rows answers")
    engine = open_engine(model)

    def tell(done: int, total: int) -> None:
        if done == total or done % (20 * batch) < batch:
            note(f"tried {done} of {total}")

    rows = difficulty.measure_pass_rates(
        engine,
        examples,
        log_folder or out.with_name(f"{out.stem}.attempts"),
        how,
        batch=batch,
        long_audio=long_audio,
        shard=part,
        on_progress=tell,
    )
    rated = list(difficulty.with_pass_rates(examples, rows, how))
    counts = difficulty.count_bands(rated)
    dropped = [band for band, drop in (("unsolved", drop_unsolved), ("solved", drop_solved)) if drop]
    kept = [example for example in rated if example.difficulty not in dropped]
    errors = [row for row in rows if row["status"] != "ok"]
    if errors:
        note(f"{len(errors)} rows could not be tried (first: {errors[0]['id']}: {errors[0]['error']})")
    if long := sum(row.get("long_clips", 0) > 0 for row in rows):
        done = {"error": "not tried", "truncate": "tried on the beginning", "chunk": "heard in pieces"}[long_audio]
        note(f"{long} rows have clips longer than {engine.name} hears: {done}")
    tried = sum(row["attempts"] for row in rows if row["status"] == "ok")
    right = sum(row["pass_count"] for row in rows if row["status"] == "ok")
    summary = {
        "rows": len(examples), "unlabelled": len(unlabelled), "errors": len(errors), "long": long, "bands": counts,
        "attempts": tried, "right": right, "unparsed": sum(row.get("unparsed", 0) for row in rows),
        "cut": sum(row.get("cut", 0) for row in rows), "kept": len(kept), "model": engine.name,
    }  # fmt: skip
    if part == UNSHARDED:
        if not kept:
            raise DataError(f"{name}: all {len(rated)} rows are {' or '.join(dropped)}; keep them or use another model")
        manifest.write(out, kept)
        summary["out"] = str(out)
    if as_json:
        print_json(summary)
    else:
        _show(summary, out if part == UNSHARDED else None, shard)
    if run_checks and part == UNSHARDED:
        check_built([out])


def _show(summary: dict[str, Any], out: Path | None, shard: str | None) -> None:
    counts, right, tried = summary["bands"], summary["right"], summary["attempts"]
    bands = ", ".join(f"{count} {band}" for band, count in counts.items() if count)
    where = f"{out}: {summary['kept']} rows kept" if out is not None else f"shard {shard} done, no manifest written"
    click.echo(f"{where}; {bands}; {right} of {tried} attempts right, {summary['unparsed']} without a readable answer")


def _ours(examples: "Sequence[Example]", part: tuple[int, int]) -> "list[Example]":
    """The rows whose first clip is in the shard, so that a clip is heard on one machine only."""
    import hashlib

    from earwise.datasets.teachers.keyed_log import in_shard
    from earwise.types import Audio

    def key(example: "Example") -> str:
        clips = [one.path for turn in example.turns for one in turn.parts if isinstance(one, Audio)]
        return hashlib.sha256((clips or [example.id])[0].encode()).hexdigest()

    return [example for example in examples if in_shard(key(example), part)]
