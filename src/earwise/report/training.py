"""What a training run shows of itself: curves by stage, and some of what was sampled on the way, with its sounds.

Part of `earwise.report`; reads what `earwise train` leaves in a run's folder: `metrics.jsonl` (one JSON object a step,
`{"step": 3, "stage": "stage-0-grpo", "grpo/reward": 0.41, ...}`), `rollouts.jsonl`, `recipe.json` and `eval/`. Names of
values are those that trackers show (`train/trackers.py`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from earwise.errors import DataError
from earwise.evaluate.results import METRICS, Run, read_run
from earwise.files import read_log
from earwise.report.cards import players
from earwise.report.page import tile
from earwise.report.plots import COLOURS, Series, curves
from earwise.report.tables import table
from earwise.train.logging.trackers import Sample, flat, grouped

LOG, ROLLOUTS, RECIPE = "metrics.jsonl", "rollouts.jsonl", "recipe.json"
# Title and note of the curves that a reader looks for first, in this order; other logged values follow under their
# own names.
CURVES = {
    "grpo/reward": ("Reward", "mean per completion"),
    "grpo/accuracy": ("Accuracy reward", "share of completions"),
    "grpo/format": ("Format reward", "share of completions"),
    "grpo/kl": ("KL to the reference", "nats per token"),
    "grpo/length": ("Completion length", "tokens"),
    "grpo/flat_groups": ("Groups without signal", "share with equal rewards"),
    "sft/loss": ("Loss", "nats per trained token"),
    "dpo/loss": ("Preference loss", "nats per pair"),
    "dpo/accuracy": ("Preference accuracy", "share of pairs with a positive margin"),
    "dpo/margin": ("Preference margin", "nats"),
    "compress/loss": ("Loss", "nats per trained token"),
    "compress/chain_tokens": ("Chain length", "tokens, as trained on"),
    "compress/delay": ("Token delay", "held-out tokens before the answer"),
}
OTHER_CURVES = 24
SHOWN_FIRST = ("grpo/reward", "sft/loss", "dpo/accuracy", "compress/loss")  # the one value of a stage
CARDS = 12


@dataclass(frozen=True, slots=True)
class Log:
    """The log of a run: its name, its file, and its rows with a step."""

    name: str
    path: Path
    rows: tuple[dict[str, Any], ...]

    @property
    def stages(self) -> list[str]:
        """In the order in which they ran; older logs do not name them."""
        return list(dict.fromkeys(row.get("stage", "") for row in self.rows))


def read_logs(paths: Sequence[Path]) -> list[Log]:
    """Training logs, each named by its folder, or by its path where folders share a name.

    Raises:
        DataError: if a log is missing or holds no rows with a step.
    """
    logs = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such training log; give the JSONL file that `earwise train` wrote")
        rows = tuple(row for row in read_log(path) if isinstance(row.get("step"), int))
        if not rows:
            raise DataError(f"{path}: holds no row with a step; give the JSONL file that `earwise train` wrote")
        name = path.absolute().parent.name
        alone = len({other.absolute().parent.name for other in paths}) == len(paths)
        logs.append(Log(name if alone else str(path), path, rows))
    return logs


def is_training(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (folder / LOG).is_file()


def measured(folder: Path, alone: bool) -> list[Run]:
    """What a training run measured by its first `eval:` entry, before and after; without what is not finished.

    Args:
        folder: Of the run.
        alone: Whether it is the only run of the page; else of each run only what it came to is shown.
    """
    sides = [side for side in ("before", "after") if (folder / "eval" / f"{side}-0" / METRICS).is_file()]
    name = folder.absolute().name
    return [
        read_run(folder / "eval" / f"{side}-0", side if alone else name) for side in (sides if alone else sides[-1:])
    ]


def training_curves(paths: Sequence[Path]) -> str:
    """Figures of everything that logs hold over steps, the known ones first, a curve a run and stage; empty without
    logs.

    Raises:
        DataError: as `read_logs`.
    """
    logs = read_logs(paths)
    if not logs:
        return ""
    parts = [(log, stage) for log in logs for stage in log.stages]
    curves_of: dict[str, list[Series]] = {}
    names = [
        " · ".join(filter(None, (log.name if len(logs) > 1 else "", stage if len(log.stages) > 1 else "")))
        for log, stage in parts
    ]
    for number, (name, (log, stage)) in enumerate(zip(names, parts, strict=True)):
        rows = [(row["step"], grouped(row)) for row in log.rows if row.get("stage", "") == stage]
        for key in dict.fromkeys(key for _, row in rows for key in row):
            dots = tuple((float(step), row[key]) for step, row in rows if math.isfinite(row.get(key, math.nan)))
            if dots:
                curves_of.setdefault(key, []).append(Series(name, dots, (number + 1) % COLOURS))
    known = [key for key in CURVES if key in curves_of]
    other = sorted(key for key in curves_of if key not in CURVES)
    first = "".join(curves(curves_of[key], *CURVES[key]) for key in known)
    rest = "".join(curves(curves_of[key], key) for key in other[:OTHER_CURVES])
    legend = "".join(
        f'<span><span class="key" style="--c:var(--c{(k + 1) % COLOURS})"></span>{escape(name)}</span>'
        for k, name in enumerate(names)
    )
    more = (
        f"<details><summary>{min(len(other), OTHER_CURVES)} more curves</summary>"
        f'<div class="plots">{rest}</div></details>'
        if rest and first
        else ""
    )
    return (
        f'<div class="legend">{legend}</div>' if len(names) > 1 else ""
    ) + f'<div class="plots">{first or rest}</div>{more}'


def rollout_cards(log: Log, budget: int) -> str:
    """Prompts from the run's first logged step to its last, evenly over it, each with its clip, its options and what
    was said for which reward; `budget` bytes of clips at most. Empty where nothing was sampled.

    Rows of older runs, which hold neither question nor clip, are left out.
    """
    folder = log.path.parent
    rows = [row for row in read_log(folder / ROLLOUTS) if "question" in row]
    count = min(CARDS, len(rows))
    picked = [rows[number * (len(rows) - 1) // max(1, count - 1)] for number in range(count)]
    body = []
    for row in picked:
        played, used = players([folder / clip for clip in row["audio"]], budget)
        budget -= used
        body.append(_card(row, played, len(log.stages) > 1))
    note = (
        f"{count} of {len(rows)} prompts in {ROLLOUTS}, evenly over the run. Before a completion stands its reward, if "
        "the stage rewards, behind it how often it was sampled."
    )
    return f'<p class="note">{note}</p><div class="cards">{"".join(body)}</div>' if body else ""


def _card(row: dict[str, Any], played: str, several: bool) -> str:
    lines = "".join(
        f'<div class="run">{"" if reward is None else f"<b>{reward:g}</b>"}{escape(text) or "<i>nothing</i>"}'
        f"{f' <small>×{times}</small>' if times > 1 else ''}</div>"
        for reward, text, times in Sample(row, ()).said
    )
    options = "".join(
        f'<li class="{"gold" if option in row["answer"] else ""}">{escape(option)}</li>'
        for option in row["choices"] or row["answer"]
    )
    stage = f"<span>{escape(row['stage'])}</span>" if several else ""
    mean = f"<span>mean reward {fmean(row['rewards']):.3g}</span>" if row["rewards"] else ""
    return (
        f'<article class="card"><header><span class="tag">step {row["step"]}</span>{stage}'
        f"{mean}</header>{played}"
        f'<p class="question">{escape(row["question"])}</p><ul class="options">{options}</ul>'
        f'<div class="said">{lines}</div><footer>{escape(row["id"])}</footer></article>'
    )


def lead(log: Log) -> str:
    """What a run did, in a sentence a stage (HTML)."""
    told = []
    for stage in log.stages:
        rows = [row for row in log.rows if row.get("stage", "") == stage]
        minutes = sum(row.get("seconds", 0.0) for row in rows) / 60
        text = f"<b>{escape(stage or log.name)}</b>: {len(rows)} steps in {minutes:.1f} minutes"
        for key in SHOWN_FIRST:
            if found := _ends(rows, key):
                text += f", {escape(CURVES[key][0].lower())} <b>{found[0]:.3g} → {found[1]:.3g}</b>"
        told.append(text + ".")
    return " ".join(told)


def tiles(log: Log) -> list[str]:
    """The numbers under the sentence: where the last stage came to."""
    rows = [row for row in log.rows if row.get("stage", "") == log.stages[-1]]
    ends = [(title, found) for key, (title, _) in CURVES.items() if (found := _ends(rows, key))]
    heard = [row[key] for row in rows for key in row if key.endswith("/hearing")]
    hears = [tile("Hearing", f"{heard[-1]:+.2f}", "nats a token gained by the sound")] if heard else []
    return [tile(title, f"{last:.3g}", f"from {first:.3g}") for title, (first, last) in ends[:4]] + hears


def _ends(rows: Sequence[dict[str, Any]], key: str) -> tuple[float, float] | None:
    """Mean of a value over the first and over the last tenth of some rows; None where it was not logged."""
    values = [value for row in rows if (value := grouped(row).get(key)) is not None]
    tenth = max(1, len(values) // 10)
    return (sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth) if values else None


def settings(log: Log) -> str:
    """The run's resolved recipe as a table; empty where there is none beside the log."""
    try:
        resolved = json.loads((log.path.parent / RECIPE).read_text(encoding="utf-8"))
        recipe = resolved["recipe"]
        stages = {f"stages.{number}": stage for number, stage in enumerate(recipe.pop("stages"))}
        values = flat({name: resolved[name] for name in ("earwise", "torch")} | recipe | stages)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    body = [[escape(name), f"<code>{escape(str(value))}</code>"] for name, value in values.items()]
    whole = f'<div class="settings">{table(["Setting", escape(log.name)], body)}</div>'
    return f"<details><summary>The whole recipe, {len(body)} settings</summary>{whole}</details>"
