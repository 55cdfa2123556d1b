"""`earwise build preferences`: scored completions into preference data for DPO."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import STYLES, find_manifest, json_option, note, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, NAME_OR_PATH

if TYPE_CHECKING:
    from earwise.datasets.preferences import ScoreKind


@dataclass(frozen=True)
class PreferencesCommand:
    """The options of `earwise build preferences`."""

    runs: tuple[Path, ...]
    rows: str
    out: Path
    score: "ScoreKind"
    margin: float
    each: int
    gold: str | None
    as_json: bool


@click.command("preferences", short_help="Pairs for DPO from evaluations or rollouts.")
@click.argument("runs", nargs=-1, required=True, type=FILE, metavar="RUN...")
@click.option(
    "--rows", required=True, type=NAME_OR_PATH, metavar="MANIFEST", help="Manifest of the questions that were asked."
)
@click.option("--out", "-o", required=True, type=FILE, help="Manifest to write.")
@click.option(
    "--score", default="lenient", show_default=True, type=click.Choice(["official", "strict", "lenient"]),
    help="Score of an evaluation that counts; for rollouts it is the reward.",
)  # fmt: skip
@click.option(
    "--margin", default=1.0, show_default=True, help="Smallest difference of scores between chosen and rejected."
)
@click.option(
    "--each", default=4, show_default=True, type=click.IntRange(1), help="Largest number of completions on each side."
)
@click.option(
    "--gold", type=click.Choice(STYLES), metavar="STYLE",
    help="Where no completion is right, choose the true answer, worded in this prompt style.",
)  # fmt: skip
@json_option
def command(**values: Any) -> None:
    """Write the rows of MANIFEST for which a RUN has better and worse completions, with `chosen` and `rejected`.

    A RUN is the folder of an evaluation (samples.jsonl) or of a GRPO training (rollouts.jsonl). Several are taken
    together, for example the same model at several seeds.

    \b
    earwise evaluate --task manifest --data train.jsonl --temperature 1 --seed 1 --out runs/one
    earwise build preferences runs/one runs/two --rows train.jsonl --out preferences.jsonl
    earwise build preferences runs/before --rows starter:train --gold answer --out preferences.jsonl
    """
    from earwise.data import manifest
    from earwise.datasets.preferences import PreferenceOptions, build_preferences

    chosen = collect_options(PreferencesCommand, values)
    options = PreferenceOptions(chosen.score, chosen.margin, chosen.each, chosen.gold)
    examples = manifest.read(find_manifest(chosen.rows), check_files=False, notify=note)
    summary = build_preferences(examples, chosen.runs, chosen.out, options)
    if chosen.as_json:
        print_json(summary)
        return
    others = ", ".join(f"{count} {outcome}" for outcome, count in summary["counts"].items() if outcome != "written")
    click.echo(
        f"{chosen.out}: {summary['rows']} rows, {summary['pairs']} pairs of replies" + (f"; {others}" if others else "")
    )
