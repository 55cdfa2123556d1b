"""`earwise build contribution`: the rows that need their sound, and those that do not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.loading import STYLES, find_manifest, json_option, note, open_engine, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, NAME_OR_PATH


@dataclass(frozen=True, slots=True)
class ContributionCommand:
    """Options of `earwise build contribution`; see the help texts below."""

    name: str
    out: Path
    models: tuple[str, ...]
    attempts: int
    weak_at: float
    style: str
    reward: str
    temperature: float
    max_new_tokens: int
    seed: int
    batch: int
    run_checks: bool
    as_json: bool


@click.command("contribution", short_help="Which rows need their sound?")
@click.argument("name", type=NAME_OR_PATH, metavar="MANIFEST")
@click.option("--out", "-o", required=True, type=FILE, help="Folder for weak.jsonl and strong.jsonl.")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    type=NAME_OR_PATH,
    help="Model that answers without the sound; may be given several times. Without it, rows are divided by their "
    "field audio-contribution (AudioMCQ).",
)
@click.option("--attempts", default=8, show_default=True, type=click.IntRange(1), help="Blind answers of each model.")
@click.option(
    "--weak-at",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="A row is weak if at least this share of the blind answers is right.",
)
@click.option("--style", default="answer", show_default=True, type=click.Choice(STYLES), help="Prompt style.")
@click.option("--reward", default="accuracy", show_default=True, help="An answer is right if this reward is 1.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0), help="Sampling temperature.")
@click.option(
    "--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Longest answer, in tokens."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the sampling.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Rows asked at a time.")
@check_option
@json_option
def command(**values: Any) -> None:
    """Divide MANIFEST into rows that are answered without their sound (weak) and rows that need it (strong).

    AudioMCQ trains on the weak rows by SFT and on the strong ones by GRPO. A stopped build, started again, continues
    where it stopped.

    \b
    earwise build contribution avqa/train.jsonl --model qwen25_omni --out audiomcq
    earwise build contribution audiomcq.jsonl --out audiomcq
    """
    from earwise.data import manifest
    from earwise.datasets.contribution import ContributionOptions, divide
    from earwise.datasets.difficulty import AttemptSettings, select_rated
    from earwise.datasets.teachers.audio_queries import QueryOptions

    chosen = collect_options(ContributionCommand, values)
    attempts = AttemptSettings(
        chosen.attempts, chosen.style, chosen.reward, chosen.temperature, chosen.max_new_tokens, chosen.seed
    )
    options = ContributionOptions(attempts, chosen.weak_at, QueryOptions(batch=chosen.batch, long_audio="truncate"))
    examples = manifest.read(find_manifest(chosen.name), check_files=False, notify=note)
    select_rated(examples)  # raises if nothing can be divided, before a model is loaded
    divided = divide([open_engine(model) for model in chosen.models], examples, chosen.out, options, notify=note)
    if chosen.as_json:
        summary = {"out": str(chosen.out), **divided.rows, "errors": divided.errors}
        print_json(summary | {"blind_accuracy": divided.blind_accuracy})
    else:
        blind = "" if divided.blind_accuracy is None else f"; {divided.blind_accuracy:.1%} of blind answers right"
        click.echo(f"{chosen.out}: {divided.rows['weak']} weak rows, {divided.rows['strong']} strong{blind}")
    if chosen.run_checks:
        check_built([chosen.out / "weak.jsonl", chosen.out / "strong.jsonl"])
