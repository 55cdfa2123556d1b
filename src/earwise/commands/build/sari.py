"""`earwise build sari`: clips and captions into SARI's corpus of questions, pass rates and chains."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.build.teacher import TeacherOptions, open_teacher, teacher_limits, teacher_options
from earwise.commands.loading import STYLES, find_manifest, json_option, note, open_engine, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, NAME_OR_PATH

if TYPE_CHECKING:
    from earwise.datasets.sari.options import SariModels, SariOptions
    from earwise.datasets.teachers.teacher import Teacher


@dataclass(frozen=True)
class SariCommand:
    """The options of `earwise build sari`."""

    collections: tuple[str, ...]
    out: Path
    items: tuple[str, ...]
    captioner: str | None
    policy: str | None
    n_sft: int
    n_rl: int
    chains: str
    questions_per_clip: int
    n_choices: int
    attempts: int
    style: str
    max_new_tokens: int
    keep_unsolved: bool
    split: str
    seed: int
    batch: int
    shard: str | None
    dry_run: bool
    teacher: TeacherOptions
    run_checks: bool
    as_json: bool

    def sari_options(self) -> "SariOptions":
        """Size and make-up of the corpus."""
        from earwise.datasets.difficulty import AttemptSettings
        from earwise.datasets.sari.options import SariOptions

        return SariOptions(
            seed=self.seed,
            n_sft=self.n_sft,
            n_rl=self.n_rl,
            chains=tuple(part.strip() for part in self.chains.split(",") if part.strip()),
            questions_per_clip=self.questions_per_clip,
            n_choices=self.n_choices,
            attempts=AttemptSettings(self.attempts, self.style, max_new_tokens=self.max_new_tokens, seed=self.seed),
            keep_unsolved=self.keep_unsolved,
            split=None if self.split == "all" else self.split,
        )

    def models(self, teacher: "Teacher") -> "SariModels":
        """The teacher, with the audio models that the options name; they are loaded unless this is a dry run."""
        from earwise.datasets.sari.options import SariModels

        limits = teacher_limits(self.teacher)
        if self.dry_run:
            return SariModels(teacher, limits=limits)
        policy = open_engine(self.policy) if self.policy else None
        captioner = policy if self.captioner == self.policy else open_engine(self.captioner) if self.captioner else None
        return SariModels(teacher, captioner, policy, limits, self.batch, self.teacher.retry_failed, note)


@click.command("sari", short_help="Captions into questions, pass rates and chains.")
@click.argument("collections", nargs=-1, type=NAME_OR_PATH, metavar="[COLLECTION]...")
@click.option("--out", "-o", required=True, type=FILE, help="Folder of the corpus.")
@click.option(
    "--items",
    multiple=True,
    type=NAME_OR_PATH,
    metavar="MANIFEST",
    help="Multiple-choice questions that exist already (AVQA).",
)
@click.option(
    "--captioner", type=NAME_OR_PATH, metavar="MODEL", help="Audio model that describes clips without a caption."
)
@click.option(
    "--policy", type=NAME_OR_PATH, metavar="MODEL", help="Audio model whose attempts tell how difficult a question is."
)
@click.option(
    "--sft", "n_sft", default=2000, show_default=True, type=click.IntRange(0), help="Number of questions with chains."
)
@click.option(
    "--rl", "n_rl", default=30000, show_default=True, type=click.IntRange(0), help="Number of questions without chains."
)
@click.option(
    "--chains", default="structured,unstructured", show_default=True, help="Styles of chains, separated by commas."
)
@click.option(
    "--questions-per-clip", default=1, show_default=True, type=click.IntRange(1), help="Questions about each clip."
)
@click.option("--n-choices", default=4, show_default=True, type=click.IntRange(2), help="Options of each question.")
@click.option(
    "--attempts", default=16, show_default=True, type=click.IntRange(1), help="Attempts of the policy at each question."
)
@click.option(
    "--style", default="answer", show_default=True, type=click.Choice(STYLES), help="Prompt style of the attempts."
)
@click.option(
    "--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Longest attempt, in tokens."
)
@click.option("--keep-unsolved", is_flag=True, help="Keep questions that no attempt answered.")
@click.option("--split", default="train", show_default=True, help="Only clips of this split; `all` takes all.")
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the questions drawn, the attempts and the order of options."
)
@click.option(
    "--batch", default=16, show_default=True, type=click.IntRange(1), help="Clips handed to an audio model at a time."
)
@click.option(
    "--shard", metavar="I/N", help="Do only this part of the clips; run once without it afterwards, for the manifests."
)
@click.option("--dry-run", is_flag=True, help="Only print how many requests and tokens the build would take.")
@teacher_options
@check_option
@json_option
def command(**values: Any) -> None:
    """Write SARI's corpus about the clips of each COLLECTION.

    A COLLECTION is one as for `build labels` (`starter` is the bundled one), or a manifest that `build source` or
    `build labels` wrote, of which the clips are taken. Rows with a field `caption` keep it. OUT gets
    sft-structured.jsonl, sft-unstructured.jsonl and rl.jsonl, the dropped questions (unsolved.jsonl) and what failed
    (failed.jsonl). A stopped build, started again, continues where it stopped.

    \b
    earwise build sari starter --policy embedded --sft 50 --rl 300 --out sari-demo
    earwise build sari clips.jsonl --items avqa.jsonl --captioner qwen2_audio --policy qwen2_audio \\
        --teacher http://127.0.0.1:8000/v1 --teacher-model Qwen/Qwen2.5-72B-Instruct --out sari
    """
    from earwise.datasets.sari.builder import TEMPLATE_REPLIES, build_sari, plan_sari
    from earwise.datasets.sari.inputs import load_inputs
    from earwise.datasets.teachers.keyed_log import parse_shard

    chosen = collect_options(SariCommand, values)
    options, shard = chosen.sari_options(), parse_shard(chosen.shard)
    inputs = load_inputs(chosen.collections, [find_manifest(name) for name in chosen.items])
    teacher = open_teacher(chosen.teacher, TEMPLATE_REPLIES)
    if chosen.dry_run:
        plan = plan_sari(inputs, chosen.out, chosen.models(teacher), options)
        print_json(plan) if chosen.as_json else _print_plan(plan)
        return
    summary = build_sari(inputs, chosen.out, chosen.models(teacher), options, shard=shard)
    if chosen.as_json:
        print_json({"out": str(chosen.out)} | summary)
    else:
        _print_summary(summary, chosen)
    manifests = [
        chosen.out / name for name, count in summary.get("written", {}).items() if count and name != "unsolved.jsonl"
    ]
    if chosen.run_checks and manifests:
        check_built(manifests)


def _print_summary(summary: dict[str, Any], chosen: SariCommand) -> None:
    """Print what was built, in sentences."""
    if summary["template"]:
        click.echo("the teacher is a template: sentences filled in from labels, no language model wrote them")
    if "written" not in summary:
        click.echo(
            f"shard {chosen.shard} done: {summary['pool']} questions; no manifests until the run without --shard"
        )
        return
    for name, count in summary["written"].items():
        click.echo(f"{chosen.out / name}: {count}")
    if summary["difficulty"]:
        click.echo("pass rates: " + ", ".join(f"{n} {band}" for band, n in summary["difficulty"].items() if n))
    else:
        click.echo("pass rates: not measured (no --policy), so nothing was dropped")
    if summary["truncated"]:
        click.echo(
            f"{summary['truncated']} questions have longer clips than the policy accepts; it got only the beginning"
        )
    for step, statuses in summary["failed"].items():
        click.echo(f"failed, {step}: " + ", ".join(f"{n} {status}" for status, n in sorted(statuses.items())))


def _print_plan(plan: dict[str, Any]) -> None:
    """Print the estimates of a dry run."""
    click.echo(
        f"{plan['clips']} clips, {plan['items']} existing questions; {plan['captions_to_write']} captions to write, "
        f"at most {plan['pool_at_most']} questions and {plan['attempts_at_most']} attempts"
    )
    for step, estimate in plan["estimates"].items():
        cost = "" if estimate["cost"] is None else f", cost about {estimate['cost']:.2f}"
        time = "" if estimate["minutes"] is None else f", at least {estimate['minutes']:.0f} minutes"
        click.echo(
            f"{step}: {estimate['requests']} requests ({estimate['already']} already in the log), about "
            f"{estimate['input_tokens']} + {estimate['output_tokens']} tokens{cost}{time}"
        )
