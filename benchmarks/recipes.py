"""Every recipe's `cpu` profile from its first stage to its last, measured before and after; what `make recipes` runs.

    make data-demo recipes
    python benchmarks/recipes.py --only mellow --only cesar --out runs/recipes

Each recipe is one `earwise train` of its own, as a user would start it, into `OUT/NAME`: what is finished is kept, what
was stopped goes on. Then the folders are read: stages, steps, seconds, loss (or reward) at the beginning and the end,
held-out scores before and after with intervals and the blind control -> `summary.json`, `summary.md`, `summary.html`,
and a report a recipe. `--quick` takes one step a stage and two items: does everything run?
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from time import perf_counter
from typing import Any

from ways.timing import machine

from earwise.config.recipe import EvalConfig, Recipe, check_recipe, load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.errors import ConfigError, EarwiseError
from earwise.evaluate.compare import compare
from earwise.evaluate.results import METRICS, EvalRun, read_run
from earwise.evaluate.scores import shared_headline
from earwise.files import append_jsonl, read_log, write_json, write_text
from earwise.report import write_report
from earwise.report.page import Section, page, tile
from earwise.report.tables import table

RECIPES = PACKAGED_RECIPES
NAMES = ("r1-aqa", "sari", "qwen2-audio", "mellow", "xs-cot", "ke-omni-r", "audio-thinker", "cesar", "embedded")
PROFILE = "cpu"
QUICK = ("stages.*.max_steps=1", "eval.*.limit=2")
WALL = "wall.jsonl"
"""Beside the runs: one row for every time that `earwise train` was started, with its seconds."""
INTERRUPTED = 130
WATCHED = {
    "sft": ("loss",),
    "dpo": ("loss", "accuracy"),
    "grpo": ("reward", "accuracy"),
    "compress": ("loss", "chain_tokens", "delay"),
}
"""By kind of stage, the logged values whose beginning and end say what it did."""
Row = dict[str, Any]


def bring(folder: Path, recipe: Recipe, fresh: Sequence[str], *, measured: bool = True) -> str | None:
    """Bring a run to its end, from wherever it is, by an `earwise train` of its own; its seconds go into `WALL`.

    Args:
        folder: Of the run.
        recipe: As it resolves.
        fresh: What follows `earwise train` to start it anew in that folder.
        measured: Measure as its `eval:` says.
    Returns:
        What was said last where it failed; None where it is finished.
    Raises:
        ConfigError: if the folder holds a run of other settings.
        KeyboardInterrupt: if it was stopped; what it had done is kept.
    """
    begun = (folder / "recipe.json").exists()
    if begun:
        refuse_another(folder, recipe)
        if is_finished(folder, recipe if measured else recipe.model_copy(update={"eval": ()})):
            return None
    started, last = perf_counter(), ""
    command = ["train", *(("--resume", str(folder)) if begun else fresh), *(() if measured else ("--no-eval",))]
    program = [sys.executable, "-c", "from earwise.cli import main; main()", *command]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                last = line.strip() or last
                print(f"  {line.rstrip()}", file=sys.stderr)
        except KeyboardInterrupt:  # the child got it too: it ends its step and saves
            child.communicate()
            raise
        finally:
            seconds = round(perf_counter() - started, 1)
            append_jsonl(folder.parent / WALL, {"run": folder.name, "seconds": seconds})
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return None if child.returncode == 0 else last or f"exit code {child.returncode}"


def refuse_another(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder whose run has other settings than the recipe has now."""
    at = folder / "recipe.json"
    if check_recipe(json.loads(at.read_text(encoding="utf-8"))["recipe"], str(at)) != recipe:
        raise ConfigError(f"{folder}: holds a run with other settings; delete that folder, or choose another --out")


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Trained, and measured after it as the recipe says, with sound and without."""
    if not (folder / "final").exists():
        return False
    files = [folder / "eval" / f"after-{number}" / METRICS for number in range(len(recipe.eval))]
    return all(at.exists() and json.loads(at.read_text(encoding="utf-8")).get("blind") for at in files)


# Reading what is there -----------------------------------------------------------------------------------------------


def described(recipe_name: str, out: Path) -> Row:
    """One finished recipe: `stages`, `held_out`, `steps`, `train_seconds`, `wall_seconds`, and a report beside it."""
    folder = out / recipe_name
    recorded = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    recipe = check_recipe(recorded["recipe"], str(folder))
    log = [row for row in read_log(folder / "metrics.jsonl") if "step" in row]
    stages = []
    for number, stage in enumerate(recipe.stages):
        name = stage.name or stage.kind
        stages.append(stage_row(name, stage.kind, [row for row in log if row["stage"] == f"stage-{number}-{name}"]))
    held_out = []
    for number, one in enumerate(recipe.eval):
        runs = [read_run(folder / "eval" / f"{when}-{number}", when) for when in ("before", "after")]
        asked = {"manifest": one.manifest, "style": one.style, "trained_on": is_trained_on(one, recipe)}
        held_out.append(asked | scores(*runs))
        at = folder / ("report.html" if number == 0 else f"report-{number}.html")
        write_report(at, runs, [folder / "metrics.jsonl"], title=f"{recipe.recipe}, profile {PROFILE}")
    return {
        "recipe": recipe_name,
        "model": recipe.model.name,
        "stages": stages,
        "held_out": held_out,
        "steps": len(log),
        "train_seconds": round(sum(row["seconds"] for row in log), 1),
        "wall_seconds": round(sum(row["seconds"] for row in read_log(out / WALL) if row["run"] == recipe_name), 1),
    }


def is_trained_on(one: EvalConfig, recipe: Recipe) -> bool:
    """Whether the rows of an `eval:` entry may also be rows of a stage: nothing held out."""
    sources = [source for stage in recipe.stages for source in stage.data.mixture if source.manifest == one.manifest]
    return any(all(one.where.get(key, value) == value for key, value in source.where.items()) for source in sources)


def stage_row(name: str, kind: str, log: Sequence[Row]) -> Row:
    """Steps, seconds, and the beginning and the end of what such a stage is watched by."""
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
    """Means of the first and of the last quarter, each of one value at least.

    >>> ends([4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0])
    [3.0, 0.5]
    """
    count = max(1, len(values) // 4)
    return [round(sum(some) / count, 4) for some in (values[:count], values[-count:])]


def scores(before: EvalRun, after: EvalRun) -> Row:
    """Held-out accuracy before and after (each with interval, blind control, format and delay), and the difference."""
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
    """`accuracy`, `low`, `high`, `blind`, `format`, and `delay` in tokens; None where there is none."""
    blind = (run.metrics["blind"] or {}).get("silence", {})
    told = [row["reasoning_tokens"] for row in run.rows if row.get("reasoning_tokens") is not None]
    row = run.metrics["accuracy"][kind]
    return {name: row[name] for name in ("accuracy", "low", "high")} | {
        "blind": blind["accuracy"][kind]["accuracy"] if blind else None,
        "format": run.metrics["format"]["accuracy"] if run.metrics["format"] else None,
        "delay": round(sum(told) / len(told), 1) if told else None,
    }


# What is written -----------------------------------------------------------------------------------------------------

HEAD = ("recipe", "stages: steps, minutes, from → to", "minutes in all", "held out: n", "before, %", "after, %",
        "under silence, %", "format, %", "difference, points")  # fmt: skip


def cells(row: Mapping[str, Any]) -> list[str]:
    """A recipe as one line of the table."""
    stages = "; ".join(stage_cell(stage) for stage in row["stages"])
    first = [row["recipe"], stages, f"{row['wall_seconds'] / 60:.1f}"]
    if not row["held_out"]:
        return [*first, *["–"] * (len(HEAD) - len(first))]
    found = row["held_out"][0]
    gap = found["difference"]
    return [
        *first,
        f"{found['n']}{', trained on' if found['trained_on'] else ''}",
        interval(found["before"]),
        interval(found["after"]),
        f"{percent(found['before']['blind'])} → {percent(found['after']['blind'])}",
        f"{percent(found['before']['format'])} → {percent(found['after']['format'])}",
        f"{100 * gap['difference']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})",
    ]


def stage_cell(stage: Mapping[str, Any]) -> str:
    """A stage in words."""
    seen = ", ".join(
        f"{key.replace('_', ' ')} {stage[key][0]:.3g} → {stage[key][1]:.3g}"
        for key in WATCHED[stage["kind"]]
        if key in stage
    )
    return f"{stage['name']} {stage['steps']}, {stage['seconds'] / 60:.1f}: {seen}"


def interval(found: Mapping[str, float]) -> str:
    """Accuracy with its interval, in percent."""
    return f"{percent(found['accuracy'])} ({percent(found['low'])}–{percent(found['high'])})"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "–" if value is None else f"{100 * value:.1f}"


def write(out: Path, rows: Sequence[Row], failed: Mapping[str, str]) -> Row:
    """Write the summary in its three forms.

    Returns:
        What `summary.json` holds: `machine`, `minutes`, `recipes` (see `described`), `failed`.
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
    body = [[linked(row), *(escape(cell) for cell in cells(row)[1:])] for row in rows]
    tiles = [tile("finished", str(len(rows)), "recipes"), tile("failed", str(len(failed)), "recipes")]
    sections = [Section("Profile cpu of each", table([*HEAD], body), notes[0])]
    sections.append(Section("Failed", "".join(f"<p>{escape(note)}</p>" for note in notes[1:])))
    lead = f"{len(rows)} recipes, first stage to last, in {minutes:.0f} minutes."
    write_text(out / "summary.html", page(title, lead, tiles, sections, f"torch {result['machine']['torch']}"))
    return result


def linked(row: Mapping[str, Any]) -> str:
    """The recipe's name, leading to its report where it has one."""
    name = escape(row["recipe"])
    return f'<a href="{name}/report.html">{name}</a>' if row["held_out"] else name


def main() -> int:
    """Run what is not finished, then sum up; 2 if a recipe failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--only", action="append", choices=NAMES, help="this recipe; may stand several times")
    parser.add_argument("--quick", action="store_true", help="one step a stage, two items: does everything run?")
    arguments = parser.parse_args()
    overrides = QUICK if arguments.quick else ()
    failed: dict[str, str] = {}
    rows: list[Row] = []
    try:
        for name in NAMES:
            if arguments.only and name not in arguments.only:
                continue
            print(f"== {name}", file=sys.stderr)
            try:
                folder, path = arguments.out / name, RECIPES / f"{name}.yaml"
                recipe = load_recipe(path, profile=PROFILE, overrides=overrides)
                fresh = (str(path), "--profile", PROFILE, "--out", str(folder), *overrides)
                reason = bring(folder, recipe, fresh)
                if reason is None:
                    rows.append(described(name, arguments.out))
            except EarwiseError as error:
                reason = " ".join(str(error).split())
            if reason is not None:
                failed[name] = reason
                print(f"{name}: {reason}", file=sys.stderr)
            if rows:
                write(arguments.out, rows, failed)
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    for row in rows:
        print(" | ".join(cells(row)))
    for name, reason in failed.items():
        print(f"{name}: failed ({reason}); the same command tries it again")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
