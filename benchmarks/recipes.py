"""Run every recipe's `cpu` profile from its first stage to its last, and measure it before and after (`make recipes`).

    make data-demo recipes
    python benchmarks/recipes.py --only mellow --only cesar --out runs/recipes
    python benchmarks/recipes.py --only gkd --set gkd:eval.0.limit=96 --json benchmarks/results/later-recipes.json

Each recipe is an `earwise train` of its own, as a user would start it, into `OUT/NAME`; finished runs are kept, stopped
ones continue. Rows that a recipe needs and that no other target builds are built first (`recipe_rows.py`). Then the
folders are read: stages, steps, seconds, loss (or reward) at the beginning and the end, held-out scores before and
after with intervals and the blind control. The results are `summary.json` (the same at `--json`), `summary.md`,
`summary.html` and a report per recipe. `--quick` trains one step per stage and evaluates two items, as a test.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from time import perf_counter
from typing import Any

from baselines.timing import commit, machine
from recipe_rows import INTERRUPTED, build_rows, run_command

from earwise.config.control.run_control import EvalConfig
from earwise.config.recipe import Recipe, check_recipe, load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.errors import ConfigError, EarwiseError
from earwise.evaluation.compare import compare
from earwise.evaluation.results import METRICS, EvalRun, read_run
from earwise.evaluation.scores import shared_headline
from earwise.files import append_jsonl, read_log, write_json, write_text
from earwise.report import write_report
from earwise.report.page import Section, page, tile
from earwise.report.tables import table

RECIPES = PACKAGED_RECIPES
NAMES = (
    "r1-aqa", "sari", "qwen2-audio", "mellow", "xs-cot", "ke-omni-r", "audio-thinker", "cesar", "hyper", "audiomcq",
    "audio-r1", "gkd", "embedded-aligned", "embedded",
)  # fmt: skip
PROFILE = "cpu"
QUICK = ("stages.*.max_steps=1", "stages.*.optimizer.warmup_steps=0", "eval.*.limit=2")
WALL = "wall.jsonl"
"""File beside the runs with one row per start of `earwise train`: the run, its seconds and the commit."""
WATCHED = {
    "sft": ("loss",),
    "dpo": ("loss", "accuracy"),
    "grpo": ("reward", "accuracy"),
    "compress": ("loss", "chain_tokens", "delay"),
    "gkd": ("loss", "length"),
}
"""Kind of stage -> the logged values whose beginning and end are reported."""
Row = dict[str, Any]


def run_to_end(folder: Path, recipe: Recipe, start_arguments: Sequence[str], *, evaluates: bool = True) -> str | None:
    """Start or continue a run with `earwise train` until it is finished; its seconds are appended to `WALL`.

    Args:
        folder: Folder of the run.
        recipe: The resolved recipe.
        start_arguments: Arguments of `earwise train` that start the run in that folder.
        evaluates: False skips the evaluations of the recipe.
    Returns:
        The last line of its error output if it failed; None if it is finished.
    Raises:
        ConfigError: if the folder has a run with other settings.
        KeyboardInterrupt: if it was interrupted; its finished work is kept.
    """
    has_started = (folder / "recipe.json").exists()
    if has_started:
        check_same_recipe(folder, recipe)
        if is_finished(folder, recipe if evaluates else recipe.model_copy(update={"eval": ()})):
            return None
    command = [
        "train",
        *(("--resume", str(folder)) if has_started else start_arguments),
        *(() if evaluates else ("--no-eval",)),
    ]
    started = perf_counter()
    try:
        return run_command(command)
    finally:
        seconds = round(perf_counter() - started, 1)
        append_jsonl(folder.parent / WALL, {"run": folder.name, "seconds": seconds, "commit": commit()})


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Compare the recipe of a run with the current one.

    Raises:
        ConfigError: if they differ.
    """
    path = folder / "recipe.json"
    if check_recipe(json.loads(path.read_text(encoding="utf-8"))["recipe"], str(path)) != recipe:
        raise ConfigError(f"{folder}: has a run with other settings; delete that folder, or choose another --out")


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """True if a run is trained and all of its evaluations are done, blind controls included."""
    if not (folder / "final").exists():
        return False
    files = [folder / "eval" / f"after-{number}" / METRICS for number in range(len(recipe.eval))]
    return all(file.exists() and json.loads(file.read_text(encoding="utf-8")).get("blind") for file in files)


# Reading finished runs -----------------------------------------------------------------------------------------------


def summarize_recipe(recipe_name: str, out: Path) -> Row:
    """Read a finished run and write its report.

    Args:
        recipe_name: Name of the recipe, and of the run's folder.
        out: Folder of all runs.
    Returns:
        `recipe`, `model`, `stages`, `held_out`, `steps`, `train_seconds`, `wall_seconds`, and `commits` that ran it.
    """
    folder = out / recipe_name
    recorded = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    recipe = check_recipe(recorded["recipe"], str(folder))
    log = [row for row in read_log(folder / "metrics.jsonl") if "step" in row]
    stages = []
    for number, stage in enumerate(recipe.stages):
        name = stage.label
        stages.append(stage_row(name, stage.kind, [row for row in log if row["stage"] == f"stage-{number}-{name}"]))
    held_out = []
    for number, entry in enumerate(recipe.eval):
        runs = [read_run(folder / "eval" / f"{when}-{number}", when) for when in ("before", "after")]
        fields = {"manifest": entry.manifest, "style": entry.style, "trained_on": is_trained_on(entry, recipe)}
        held_out.append(fields | scores(*runs))
        report = folder / ("report.html" if number == 0 else f"report-{number}.html")
        write_report(report, runs, [folder / "metrics.jsonl"], title=f"{recipe.recipe}, profile {PROFILE}")
    starts = [row for row in read_log(out / WALL) if row["run"] == recipe_name]
    return {
        "recipe": recipe_name,
        "model": recipe.model.name,
        "stages": stages,
        "held_out": held_out,
        "steps": len(log),
        "train_seconds": round(sum(row["seconds"] for row in log), 1),
        "wall_seconds": round(sum(row["seconds"] for row in starts), 1),
        "commits": sorted({row["commit"] for row in starts if row.get("commit")}),
    }


def is_trained_on(entry: EvalConfig, recipe: Recipe) -> bool:
    """True if rows of an `eval` entry may also be rows of a stage, so that nothing is held out."""
    sources = [source for stage in recipe.stages for source in stage.data.mixture if source.manifest == entry.manifest]
    return any(all(entry.where.get(key, value) == value for key, value in source.where.items()) for source in sources)


def stage_row(name: str, kind: str, log: Sequence[Row]) -> Row:
    """Steps, seconds, and the beginning and the end of the reported values of a stage.

    Args:
        name: Name of the stage.
        kind: Kind of the stage.
        log: Rows of its log.
    """
    watched = {}
    for key in WATCHED[kind]:
        values = [row[f"{kind}/{key}"] for row in log if f"{kind}/{key}" in row]
        if values:
            watched[key] = ends(values)
    return {
        "name": name,
        "kind": kind,
        "steps": len(log),
        "seconds": round(sum(row["seconds"] for row in log), 1),
    } | watched


def ends(values: Sequence[float]) -> list[float]:
    """Means of the first and of the last quarter of some values (of at least one value each).

    >>> ends([4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0])
    [3.0, 0.5]
    """
    count = max(1, len(values) // 4)
    return [round(sum(part) / count, 4) for part in (values[:count], values[-count:])]


def scores(before: EvalRun, after: EvalRun) -> Row:
    """Held-out accuracy before and after training, each with details of `score`, and the difference."""
    kind = shared_headline([before, after])
    paired = compare(before, after)[kind]
    return {
        "kind": kind,
        "n": paired["n"],
        "chance": after.metrics["chance"],
        "before": score(before, kind),
        "after": score(after, kind),
        "difference": {key: paired[key] for key in ("difference", "low", "high", "p", "wins", "losses", "method")},
    }


def score(run: EvalRun, kind: str) -> Row:
    """`accuracy`, `low`, `high`, `blind`, `format`, and `delay` in tokens; None if not available."""
    blind = (run.metrics["blind"] or {}).get("silence", {})
    delays = [row["reasoning_tokens"] for row in run.rows if row.get("reasoning_tokens") is not None]
    row = run.metrics["accuracy"][kind]
    return {name: row[name] for name in ("accuracy", "low", "high")} | {
        "blind": blind["accuracy"][kind]["accuracy"] if blind else None,
        "format": run.metrics["format"]["accuracy"] if run.metrics["format"] else None,
        "delay": round(sum(delays) / len(delays), 1) if delays else None,
    }


# Writing the summary -------------------------------------------------------------------------------------------------

HEAD = ("recipe", "stages: steps, minutes, from → to", "minutes in all", "held out: n", "before, %", "after, %",
        "under silence, %", "format, %", "difference, points")  # fmt: skip


def cells(row: Mapping[str, Any]) -> list[str]:
    """A recipe as one row of the table."""
    stages = "; ".join(stage_cell(stage) for stage in row["stages"])
    first = [row["recipe"], stages, f"{row['wall_seconds'] / 60:.1f}"]
    if not row["held_out"]:
        return [*first, *["–"] * (len(HEAD) - len(first))]
    held_out = row["held_out"][0]
    gap = held_out["difference"]
    return [
        *first,
        f"{held_out['n']}{', trained on' if held_out['trained_on'] else ''}",
        interval(held_out["before"]),
        interval(held_out["after"]),
        f"{percent(held_out['before']['blind'])} → {percent(held_out['after']['blind'])}",
        f"{percent(held_out['before']['format'])} → {percent(held_out['after']['format'])}",
        f"{100 * gap['difference']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})",
    ]


def stage_cell(stage: Mapping[str, Any]) -> str:
    """A stage as text: steps, minutes, and its reported values."""
    values = ", ".join(
        f"{key.replace('_', ' ')} {stage[key][0]:.3g} → {stage[key][1]:.3g}"
        for key in WATCHED[stage["kind"]]
        if key in stage
    )
    return f"{stage['name']} {stage['steps']}, {stage['seconds'] / 60:.1f}: {values}"


def interval(score: Mapping[str, float]) -> str:
    """Accuracy with its interval, in percent."""
    return f"{percent(score['accuracy'])} ({percent(score['low'])}–{percent(score['high'])})"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "–" if value is None else f"{100 * value:.1f}"


def write(out: Path, rows: Sequence[Row], failed: Mapping[str, str]) -> Row:
    """Write the summary as JSON, Markdown and HTML.

    Args:
        out: Folder of all runs.
        rows: `summarize_recipe` of each finished recipe.
        failed: Recipe -> why it failed.
    Returns:
        The content of `summary.json`: `machine`, `minutes`, `recipes`, `failed`.
    """
    minutes = sum(row["wall_seconds"] for row in rows) / 60
    result = {"machine": machine(), "minutes": round(minutes, 1), "recipes": list(rows), "failed": dict(failed)}
    write_json(out / "summary.json", result)
    notes = [
        "Loss, reward and the like: mean of the first quarter of a stage's steps → of the last. Held out: accuracy "
        "with its 95 % interval, then the same items under silence, before → after; the difference is paired.",
        *(f"{name} failed: {reason}" for name, reason in failed.items()),
    ]
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join(["---"] * len(HEAD)) + " |"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    title = "Recipes run to their end"
    write_text(out / "summary.md", "\n".join([f"# {title}", "", *lines, "", *(f"- {note}" for note in notes)]) + "\n")
    body = [[linked_name(row), *(escape(cell) for cell in cells(row)[1:])] for row in rows]
    tiles = [tile("finished", str(len(rows)), "recipes"), tile("failed", str(len(failed)), "recipes")]
    sections = [Section("Profile cpu of each", table([*HEAD], body), notes[0])]
    sections.append(Section("Failed", "".join(f"<p>{escape(note)}</p>" for note in notes[1:])))
    lead = f"{len(rows)} recipes, first stage to last, in {minutes:.0f} minutes."
    write_text(out / "summary.html", page(title, lead, tiles, sections, f"torch {result['machine']['torch']}"))
    return result


def linked_name(row: Mapping[str, Any]) -> str:
    """The recipe's name as HTML, with a link to its report if it has one."""
    name = escape(row["recipe"])
    return f'<a href="{name}/report.html">{name}</a>' if row["held_out"] else name


def main() -> int:
    """Run the recipes that are not finished, then write the summary. Exit code 2 means that a recipe failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--only", action="append", choices=NAMES, help="run only this recipe; can be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="RECIPE:KEY=VALUE", help="a setting of a recipe")
    parser.add_argument("--json", type=Path, help="write the summary as JSON here as well")
    parser.add_argument("--quick", action="store_true", help="one step per stage and two items, as a test")
    arguments = parser.parse_args()
    failed: dict[str, str] = {}
    rows: list[Row] = []
    try:
        for name in NAMES:
            if arguments.only and name not in arguments.only:
                continue
            print(f"== {name}", file=sys.stderr)
            settings = [setting.removeprefix(f"{name}:") for setting in arguments.set if setting.startswith(f"{name}:")]
            try:
                reason = run_recipe(name, arguments.out, (*(QUICK if arguments.quick else ()), *settings))
                if reason is None:
                    rows.append(summarize_recipe(name, arguments.out))
            except EarwiseError as error:
                reason = " ".join(str(error).split())
            if reason is not None:
                failed[name] = reason
                print(f"{name}: {reason}", file=sys.stderr)
            if rows:
                result = write(arguments.out, rows, failed)
                if arguments.json:
                    write_json(arguments.json, result)
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, and the same command continues", file=sys.stderr)
        return INTERRUPTED
    for row in rows:
        print(" | ".join(cells(row)))
    for name, reason in failed.items():
        print(f"{name}: failed ({reason}); the same command tries again")
    return 2 if failed else 0


def run_recipe(name: str, out: Path, overrides: Sequence[str]) -> str | None:
    """Build what a recipe needs and run it to its end.

    Args:
        name: Name of the recipe.
        out: Folder of all runs.
        overrides: Settings, `KEY=VALUE` each.
    Returns:
        Why it failed; None if it is finished.
    Raises:
        EarwiseError: if the recipe is wrong, or its folder has a run with other settings.
        KeyboardInterrupt: if it was interrupted; its finished work is kept.
    """
    folder, path = out / name, RECIPES / f"{name}.yaml"
    recipe = load_recipe(path, profile=PROFILE, overrides=overrides)
    start_arguments = (str(path), "--profile", PROFILE, "--out", str(folder), *overrides)
    return build_rows(name) or run_to_end(folder, recipe, start_arguments)


if __name__ == "__main__":
    sys.exit(main())
