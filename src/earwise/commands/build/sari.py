"""`earwise build sari`: clips and captions into SARI's corpus of questions, pass rates and chains."""

from pathlib import Path
from typing import Any

import click

from earwise.commands.build.check import after, check_option
from earwise.commands.loading import STYLES, find_manifest, json_option, note, open_engine, result
from earwise.commands.teacher import TeacherOptions, limits, open_teacher, teacher_options
from earwise.errors import ConfigError

FILE = click.Path(path_type=Path)


@click.command("sari", short_help="Captions into questions, pass rates and chains.")
@click.argument("collection", required=False, metavar="[COLLECTION]")
@click.option("--out", "-o", required=True, type=FILE, help="Folder to fill.")
@click.option("--items", multiple=True, metavar="MANIFEST", help="Multiple-choice questions that exist already (AVQA).")
@click.option("--captioner", metavar="MODEL", help="Audio model that describes clips without a caption.")
@click.option("--policy", metavar="MODEL", help="Audio model whose attempts tell how hard an item is.")
@click.option("--sft", "n_sft", default=2000, show_default=True, type=click.IntRange(0), help="Items with chains.")
@click.option("--rl", "n_rl", default=30000, show_default=True, type=click.IntRange(0), help="Items without.")
@click.option("--chains", default="structured,unstructured", show_default=True, help="Kinds of chains, by commas.")
@click.option("--questions-per-clip", default=1, show_default=True, type=click.IntRange(1))
@click.option("--n-choices", default=4, show_default=True, type=click.IntRange(2), help="Options of a question.")
@click.option("--attempts", default=16, show_default=True, type=click.IntRange(1), help="Of the policy at each item.")
@click.option(
    "--style", default="answer", show_default=True, type=click.Choice(STYLES), help="How the policy is asked."
)
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Of an attempt.")
@click.option("--keep-unsolved", is_flag=True, help="Keep items that no attempt answered.")
@click.option("--split", default="train", show_default=True, help="Only clips of this split; `all` takes all.")
@click.option("--seed", default=0, show_default=True, help="Of the draw, the attempts and the order of options.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Clips heard together.")
@click.option("--shard", metavar="I/N", help="Do only this part of the clips; then once without, for the manifests.")
@click.option("--dry-run", is_flag=True, help="Only say how many requests and tokens it would take.")
@teacher_options
@check_option
@json_option
def command(
    collection: str | None,
    out: Path,
    items: tuple[str, ...],
    captioner: str | None,
    policy: str | None,
    n_sft: int,
    n_rl: int,
    chains: str,
    questions_per_clip: int,
    n_choices: int,
    attempts: int,
    style: str,
    max_new_tokens: int,
    keep_unsolved: bool,
    split: str,
    seed: int,
    batch: int,
    shard: str | None,
    dry_run: bool,
    checked: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write SARI's corpus about the clips of COLLECTION (as for `build labels`; `starter` is the bundled one).

    Rows with a field `caption` keep it. OUT gets sft-structured.jsonl, sft-unstructured.jsonl and rl.jsonl, what was
    dropped (unsolved.jsonl) and what failed (failed.jsonl). Killed and started again, it asks nothing twice.

    \b
    earwise build sari starter --policy embedded --sft 50 --rl 300 --out sari-demo
    earwise build sari clips.jsonl --items avqa.jsonl --captioner qwen2_audio --policy qwen2_audio \\
        --teacher http://127.0.0.1:8000/v1 --teacher-model Qwen/Qwen2.5-72B-Instruct --out sari
    """
    from earwise.data import manifest
    from earwise.datasets.difficulty import Attempts
    from earwise.datasets.labels import collection as collections
    from earwise.datasets.sari import splits
    from earwise.datasets.sari.pool import Helpers, Settings
    from earwise.datasets.teachers.keyed_log import parse_shard

    if collection is None and not items:
        raise ConfigError("nothing to build from; name a collection of clips, or --items with questions")
    options = TeacherOptions(**asked)
    settings = Settings(
        seed=seed,
        n_sft=n_sft,
        n_rl=n_rl,
        chains=tuple(part.strip() for part in chains.split(",") if part.strip()),
        questions_per_clip=questions_per_clip,
        n_choices=n_choices,
        attempts=Attempts(attempts, style, max_new_tokens=max_new_tokens, seed=seed),
        keep_unsolved=keep_unsolved,
        split=None if split == "all" else split,
    )
    part = parse_shard(shard)
    rows, root = collections.load(_found(collection)) if collection is not None else ([], Path())
    given = [example for name in items for example in manifest.read(find_manifest(name), check_files=False)]
    teacher = open_teacher(options, splits.FILLERS)
    if dry_run:
        _show_plan(splits.plan(rows, root, given, out, Helpers(teacher, limits=limits(options)), settings), as_json)
        return
    listener = open_engine(policy) if policy else None
    describer = listener if captioner and captioner == policy else open_engine(captioner) if captioner else None
    helpers = Helpers(teacher, describer, listener, limits(options), batch, options.retry_failed, note)
    summary = splits.build(rows, root, given, out, helpers, settings, shard=part)
    if as_json:
        result({"out": str(out)} | summary)
    else:
        _show(summary, out, teacher.is_template, shard)
    filled = [out / name for name, count in summary.get("written", {}).items() if count and name != "unsolved.jsonl"]
    if checked and filled:
        after(filled)


def _show(summary: dict[str, Any], out: Path, is_template: bool, shard: str | None) -> None:
    if is_template:
        click.echo("the teacher is a template: sentences filled in from labels, no language model wrote them")
    if "written" not in summary:
        click.echo(f"shard {shard} done: {summary['pool']} items; no manifests until the run without --shard")
        return
    for name, count in summary["written"].items():
        click.echo(f"{out / name}: {count}")
    if summary["difficulty"]:
        click.echo("pass rates: " + ", ".join(f"{n} {band}" for band, n in summary["difficulty"].items() if n))
    else:
        click.echo("pass rates: not measured (no --policy), so nothing was dropped")
    if summary["truncated"]:
        click.echo(f"of {summary['truncated']} items the policy heard only the beginning: longer than it hears")
    for step, kinds in summary["failed"].items():
        click.echo(f"failed, {step}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))


def _found(name: str) -> Path:
    """`starter` is the bundled collection; anything else is a path."""
    import earwise

    return Path(earwise.__file__).parent / "assets" / "starter" if name == "starter" else Path(name)


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        result(plan)
        return
    click.echo(
        f"{plan['clips']} clips, {plan['items']} items; {plan['captions_to_write']} captions to write, at most "
        f"{plan['pool_at_most']} items and {plan['attempts_at_most']} attempts"
    )
    for step, one in plan["estimates"].items():
        cost = "" if one["cost"] is None else f", cost about {one['cost']:.2f}"
        time = "" if one["minutes"] is None else f", at least {one['minutes']:.0f} minutes"
        click.echo(
            f"{step}: {one['requests']} requests ({one['already']} there already), about {one['input_tokens']} + "
            f"{one['output_tokens']} tokens{cost}{time}"
        )
