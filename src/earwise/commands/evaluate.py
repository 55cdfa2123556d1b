"""`earwise evaluate`, `compare`, `report`: measure a model, set two runs side by side, make a page to read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import (
    STYLES,
    field_values,
    find_manifest,
    json_option,
    model_option,
    note,
    open_engine,
    result,
)
from earwise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from earwise.report import RunDir
    from earwise.types import Example

FOLDER = click.Path(path_type=Path)


@click.command("evaluate", short_help="Measure a model on a task, with blind controls.")
@click.option(
    "--task",
    default="manifest",
    show_default=True,
    metavar="TASK",
    help="manifest, mmau, mmar, or your own module:function.",
)
@click.option("--data", required=True, metavar="PATH", help="The task's file, or starter:val for the bundled clips.")
@click.option("--audio-root", type=FOLDER, help="Folder of the clips, where it is not the file's own.")
@model_option
@click.option(
    "--out",
    "-o",
    required=True,
    type=FOLDER,
    help="Folder for samples.jsonl and metrics.json; the same command again continues a stopped run.",
)
@click.option(
    "--style", default="answer", show_default=True, type=click.Choice(STYLES), help="Wording of the question."
)
@click.option("--split", help="Only items of this split: train, val or test.")
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only items whose task, category, source, split or language is this; may stand several times.",
)
@click.option("--limit", type=click.IntRange(1), help="Only so many items, evenly spaced over the file.")
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Also ask under silence and with another item's sound.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), help="Longest answer, in tokens. [default: 64; 512 in thinking styles]"
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0 says the likeliest answer; above, draws one.",
)
@click.option("--seed", default=0, show_default=True, help="Of draws, controls and the order of options.")
@click.option(
    "--permutations",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Ask each item under so many orders of its options.",
)
@click.option(
    "--batch", default=16, show_default=True, type=click.IntRange(1), help="Items asked together; changes speed only."
)
@click.option(
    "--long-audio",
    default="error",
    show_default=True,
    type=click.Choice(["error", "truncate", "chunk"]),
    help="For clips longer than the model hears: an error, hear the beginning, or hear several clips in a row.",
)
@click.option(
    "--allow-errors",
    is_flag=True,
    help="End with code 0 even if some clips could not be heard (they count as wrong either way).",
)
@json_option
def command(
    task: str,
    data: str,
    audio_root: Path | None,
    model: str,
    out: Path,
    style: str,
    split: str | None,
    conditions: tuple[str, ...],
    limit: int | None,
    controls: bool,
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
    permutations: int,
    batch: int,
    long_audio: str,
    allow_errors: bool,
    as_json: bool,
) -> None:
    """Ask MODEL every item of a task and score the answers; then again without the sound, to see whether it listens.

    \b
    earwise evaluate --data starter:val --out runs/first
    earwise evaluate --task mmau --data mmau-test-mini.json --audio-root audios/ --out runs/mmau
    earwise evaluate --data questions.jsonl --model runs/r1-aqa/final --out runs/after --limit 200
    earwise evaluate --data questions.jsonl --split val --where task=recognition --out runs/val
    """
    from earwise.apps.recipe_eval import progress, spread
    from earwise.engine.base import Decoding
    from earwise.evaluate import tasks
    from earwise.evaluate.run import evaluate_with_controls
    from earwise.prompts import THINKING

    path = find_manifest(data) if data.startswith("starter:") else Path(data)
    where = _where(split, conditions)
    examples = spread(_selected(tasks.load(task, path, audio_root), where, path), limit)
    tokens = max_new_tokens or (512 if style in THINKING else 64)
    engine = open_engine(model)
    try:
        metrics = evaluate_with_controls(
            engine,
            examples,
            out,
            blind=("silence", "shuffled") if controls else (),
            seed=seed,
            style=style,
            decoding=Decoding(max_new_tokens=tokens, temperature=temperature, seed=seed),
            batch=batch,
            permutations=permutations,
            long_audio=long_audio,
            on_progress=progress(note),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; the answers so far are kept in {out}, the same command goes on from there"
        ) from None
    if as_json:
        result({"out": str(out)} | metrics)
    else:
        click.echo(as_text(metrics))
        click.echo(f"{out}/metrics.json, {out}/samples.jsonl; a page to read: earwise report {out}")
    errors = metrics["error"]["count"]
    if errors and not allow_errors:
        raise DataError(
            f"{errors} of {metrics['error']['n']} items could not be asked and count as wrong (first: "
            f"{metrics['first_error']}); all answers are kept in {out}; repair the files and evaluate into a new "
            "folder, or say --allow-errors"
        )


def _where(split: str | None, conditions: tuple[str, ...]) -> dict[str, str]:
    """What `--split` and `--where` ask for together: field -> value.

    Raises:
        ConfigError: for a condition on another field, or two on one.
    """
    from earwise.data.index import WHERE_FIELDS

    where: dict[str, str] = {}
    for field, value in [*([("split", split)] if split else []), *field_values(conditions, "--where")]:
        if field not in WHERE_FIELDS:
            raise ConfigError(f"--where {field}={value}: {field!r} is none of {', '.join(WHERE_FIELDS)}")
        if where.setdefault(field, value) != value:
            raise ConfigError(f"--where {field}={value}: {field} shall be {where[field]} already; no item is both")
    return where


def _selected(examples: "list[Example]", where: dict[str, str], path: Path) -> "list[Example]":
    """The items that meet all conditions.

    Raises:
        DataError: if there are none, with the values that there are.
    """
    from earwise.data.manifest import select

    for field, value in where.items():
        if not (found := select(examples, {field: value})):
            there = sorted({str(getattr(example, field)) or "(none)" for example in examples})
            known = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
            raise DataError(f"{path}: no item has {field} {value!r}; there are {known}")
        examples = found
    return examples


def as_text(metrics: dict[str, Any]) -> str:
    """The result as a small table for the terminal."""
    if metrics["accuracy"] is None:
        return f"{metrics['unlabelled']} items asked, none has a gold answer: no accuracy"
    lines = [f"{metrics['model']}: n = {metrics['n']}{_chance(metrics)}"]
    lines.append(f"{'':20}{'official':>10}{'strict':>10}{'lenient':>10}   95 % interval (official)")
    lines.append(_row("with sound", metrics["accuracy"]))
    if len(metrics["kinds"]) > 1:
        lines += [_row(f"  {name}, {row['official']['n']}", row) for name, row in metrics["kinds"].items()]
    for control, row in metrics.get("blind", {}).items():
        if "left_out" in row:
            lines.append(f"{control:20}left out: {row['left_out']}")
            continue
        gain = row["hearing_gain"]["official"]
        lines.append(_row(control, row["accuracy"]))
        lines.append(
            f"{'  hearing gain':20}{100 * gain['difference']:>+10.1f}   "
            f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}], p {gain['p']:.4f}"
        )
    if metrics["format"] is not None:
        lines.append(f"in the asked format {100 * metrics['format']['accuracy']:>11.1f}")
    unread = {name: metrics[name]["count"] for name in ("unparsed", "ambiguous", "error") if metrics[name]["count"]}
    if unread:
        lines.append("counted as wrong: " + ", ".join(f"{count} {name}" for name, count in unread.items()))
    if metrics["silent"]:
        lines.append(f"{metrics['silent']} items have silent clips")
    return "\n".join(lines)


def _chance(metrics: dict[str, Any]) -> str:
    """What a guess is worth, and of which items that is said."""
    if metrics["chance"] is None:
        return ", all open: no chance level"
    said = f", chance {100 * metrics['chance']:.1f} %"
    if metrics["chance_n"] < metrics["n"]:
        return f"{said} of the {metrics['chance_n']} with options ({metrics['n'] - metrics['chance_n']} are open)"
    return said


def _row(name: str, accuracy: dict[str, Any]) -> str:
    shares = "".join(f"{100 * accuracy[kind]['accuracy']:>10.1f}" for kind in ("official", "strict", "lenient"))
    official = accuracy["official"]
    return f"{name:20}{shares}   {100 * official['low']:.1f}-{100 * official['high']:.1f}"


@click.command("compare", short_help="Two runs on the same items: is the difference real?")
@click.argument("before", type=FOLDER)
@click.argument("after", type=FOLDER)
@click.option("--common", is_flag=True, help="Compare on the items that both have, where the runs differ in items.")
@click.option(
    "--score",
    "kind",
    default="official",
    show_default=True,
    type=click.Choice(["official", "strict", "lenient"]),
    help="Which verdicts the table shows.",
)
@click.option("--seed", default=0, show_default=True, help="Of the intervals' draws.")
@json_option
def compare(before: Path, after: Path, common: bool, kind: str, seed: int, as_json: bool) -> None:
    """Compare two folders that `earwise evaluate` wrote, item by item.

    \b
    earwise compare runs/before runs/after
    earwise compare runs/before runs/after --score strict --json
    """
    from earwise.evaluate import compare as comparing

    found = comparing.compare(before, after, common=common, seed=seed)
    if as_json:
        result(found)
    else:
        click.echo(comparing.as_text(found, kind))


@click.command("report", short_help="One HTML page of runs, with players and training curves.")
@click.argument("folders", nargs=-1, required=True, metavar="RUN...", type=FOLDER)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="File to write. [default: report.html in the last RUN]"
)
@click.option(
    "--training",
    "-t",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of a training run (or its metrics.jsonl) whose curves are drawn; may stand several times.",
)
@click.option("--title", help="Title of the page. [default: Evaluation; of training runs their names]")
@click.option("--seed", default=0, show_default=True, help="Of the draw of sample clips.")
@json_option
def report(
    folders: tuple[Path, ...], out: Path | None, training: tuple[Path, ...], title: str | None, seed: int, as_json: bool
) -> None:
    """Write one self-contained page about RUNs: the first is compared with (before), the last is in question (after).

    A RUN is what `earwise evaluate` wrote, or `earwise train`: of the latter, what it measured before and after, its
    curves, and samples from its way.

    \b
    earwise report runs/first
    earwise report runs/r1-aqa-cpu
    earwise report runs/before runs/after --training runs/r1-aqa --out report.html
    """
    from earwise.report import write_report
    from earwise.report.training import is_training, measured

    if out is not None and out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the file to write, for example {out / 'report.html'}")
    target = out or folders[-1] / "report.html"
    trained = [folder for folder in folders if is_training(folder)]
    runs: list[RunDir] = []
    for folder in folders:
        runs += measured(folder, len(folders) == 1) if folder in trained else [folder]
    logs = [path / "metrics.jsonl" if path.is_dir() else path for path in (*trained, *training)]
    named = title or ", ".join(folder.absolute().name for folder in trained) or "Evaluation"
    written = write_report(target, runs, logs, title=named, seed=seed)
    if as_json:
        result({"report": str(written)})
    else:
        note(f"{written.stat().st_size / 1e6:.1f} MB")
        click.echo(str(written))
