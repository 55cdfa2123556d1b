"""`earwise build preferences`: right replies against wrong ones, from what models said, for DPO."""

from collections import Counter
from pathlib import Path

import click

from earwise.commands.loading import STYLES, find_manifest, json_option, result
from earwise.errors import DataError


@click.command("preferences", short_help="Pairs for DPO from evaluations or rollouts.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--rows", required=True, metavar="MANIFEST", help="The questions that were asked.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Manifest to write.")
@click.option(
    "--score", default="lenient", show_default=True, type=click.Choice(["official", "strict", "lenient"]),
    help="Which score of an evaluation counts; of rollouts it is the reward.",
)  # fmt: skip
@click.option("--margin", default=1.0, show_default=True, help="Smallest distance between the two sides' scores.")
@click.option("--each", default=4, show_default=True, type=click.IntRange(1), help="Replies of a side at most.")
@click.option(
    "--gold", type=click.Choice(STYLES), metavar="STYLE",
    help="Where no reply is right, choose the true answer, worded in this style.",
)  # fmt: skip
@json_option
def command(
    runs: tuple[Path, ...], rows: str, out: Path, score: str, margin: float, each: int, gold: str | None, as_json: bool
) -> None:
    """Write the rows of MANIFEST to which a RUN has better and worse replies, with `chosen` and `rejected`.

    A RUN is the folder of an evaluation (samples.jsonl) or of a GRPO training (rollouts.jsonl); several are taken
    together, for example the same model at several seeds.

    \b
    earwise evaluate --task manifest --data train.jsonl --temperature 1 --seed 1 --out runs/one
    earwise build preferences runs/one runs/two --rows train.jsonl --out preferences.jsonl
    earwise build preferences runs/before --rows starter:train --gold answer --out preferences.jsonl
    """
    from earwise.data import manifest
    from earwise.datasets import preferences

    examples = manifest.read(find_manifest(rows), check_files=False)
    replies = [reply for run in runs for reply in preferences.read_replies(run, score)]
    counts: Counter[str] = Counter()
    made = list(preferences.preferences(examples, replies, margin=margin, each=each, gold=gold, counts=counts))
    if not made:
        shown = ", ".join(f"{count} {what}" for what, count in counts.items())
        raise DataError(
            f"{rows}: no row has a better and a worse reply ({shown}); ask it again at temperature 1, or --gold"
        )
    manifest.write(out, made)
    pairs = sum(len(one.chosen) * len(one.rejected) for one in made)
    summary = {"rows": len(made), "replies": len(replies), "pairs": pairs, "counts": dict(counts), "out": str(out)}
    if as_json:
        result(summary)
        return
    left = ", ".join(f"{count} {what}" for what, count in counts.items() if what != "written")
    click.echo(f"{out}: {len(made)} rows, {pairs} pairs of replies" + (f"; {left}" if left else ""))
