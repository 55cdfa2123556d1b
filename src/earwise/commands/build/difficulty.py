"""`earwise build difficulty`: pass rates of a model on a manifest, for curricula and filters."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import (
    STYLES,
    channel_option,
    find_manifest,
    json_option,
    model_option,
    note,
    open_engine,
    print_json,
)
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, NAME_OR_PATH

if TYPE_CHECKING:
    from earwise.audio import Channel, LongAudio
    from earwise.datasets.difficulty import DifficultyOptions


@dataclass(frozen=True)
class DifficultyCommand:
    """The options of `earwise build difficulty`."""

    name: str
    out: Path
    model: str
    attempts: int
    style: str
    reward: str
    temperature: float
    max_new_tokens: int
    seed: int
    drop_unsolved: bool
    drop_solved: bool
    long_audio: "LongAudio"
    channel: "Channel"
    batch: int
    log_folder: Path | None
    shard: str | None
    run_checks: bool
    as_json: bool

    def difficulty_options(self) -> "DifficultyOptions":
        """How the manifest is rated, and which of its rows are kept."""
        from earwise.datasets.difficulty import AttemptSettings, DifficultyOptions

        dropped = [name for name, drop in (("unsolved", self.drop_unsolved), ("solved", self.drop_solved)) if drop]
        attempts = AttemptSettings(
            self.attempts, self.style, self.reward, self.temperature, self.max_new_tokens, self.seed
        )
        return DifficultyOptions(attempts, tuple(dropped), self.batch, self.long_audio, self.log_folder, self.channel)


@click.command("difficulty", short_help="How often does a model get each question right?")
@click.argument("name", type=NAME_OR_PATH, metavar="MANIFEST")
@click.option("--out", "-o", required=True, type=FILE, help="Manifest to write, with pass rates.")
@model_option
@click.option(
    "--attempts", default=16, show_default=True, type=click.IntRange(1), help="Answers sampled for each question."
)
@click.option(
    "--style", default="answer", show_default=True, type=click.Choice(STYLES), help="Prompt style of the question."
)
@click.option("--reward", default="accuracy", show_default=True, help="An attempt is right if this reward is 1.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0), help="Sampling temperature.")
@click.option(
    "--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Longest attempt, in tokens."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the sampling.")
@click.option("--drop-unsolved", is_flag=True, help="Leave out rows that no attempt answered (SARI: 0 of 16).")
@click.option("--drop-solved", is_flag=True, help="Leave out rows that every attempt answered: no gradient in GRPO.")
@click.option(
    "--long-audio",
    default="error",
    show_default=True,
    type=click.Choice(["error", "truncate", "chunk"]),
    help="For clips longer than the model accepts: an error, only the beginning, or several clips in a row.",
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Rows attempted at a time.")
@channel_option
@click.option("--log", "log_folder", type=FILE, help="Folder of the attempts; beside the manifest by default.")
@click.option("--shard", metavar="I/N", help="Rate only this part of the clips and write no manifest; see above.")
@check_option
@json_option
def command(**values: Any) -> None:
    """Sample 16 answers to every row of MANIFEST and write it again with `difficulty`, `pass_count` and `pass_rate`.

    Each clip is encoded once for all attempts. A stopped build, started again, continues where it stopped. On many
    machines: the same command with --shard 1/8 ... 8/8, then once without --shard on the folder with all their logs.

    \b
    earwise build difficulty questions.jsonl --model embedded --out rated.jsonl
    earwise build difficulty starter:train --drop-unsolved --out starter-rated.jsonl
    """
    from earwise.data import manifest
    from earwise.datasets.difficulty import build_difficulty, select_rated
    from earwise.datasets.teachers.keyed_log import UNSHARDED, parse_shard

    chosen = collect_options(DifficultyCommand, values)
    options, shard = chosen.difficulty_options(), parse_shard(chosen.shard)
    examples = manifest.read(find_manifest(chosen.name), check_files=False, notify=note)
    select_rated(examples, shard)  # raises if nothing can be rated, before a model is loaded
    summary = build_difficulty(open_engine(chosen.model), examples, chosen.out, options, shard=shard, notify=note)
    if chosen.as_json:
        print_json(summary)
    else:
        _print_summary(summary, chosen.shard)
    if chosen.run_checks and shard == UNSHARDED:
        check_built([chosen.out])


def _print_summary(summary: dict[str, Any], shard: str | None) -> None:
    """Print what was measured, in one line."""
    bands = ", ".join(f"{count} {band}" for band, count in summary["bands"].items() if count)
    if "out" in summary:
        outcome = f"{summary['out']}: {summary['kept']} rows kept"
    else:
        outcome = f"shard {shard} done, no manifest written"
    click.echo(
        f"{outcome}; {bands}; {summary['right']} of {summary['attempts']} attempts right, "
        f"{summary['unparsed']} without a readable answer"
    )
