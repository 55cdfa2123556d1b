"""What a training run shows: curves by stage, and completions sampled during training, with their clips.

Part of `earwise.report`; reads what `earwise train` writes into the folder of a run: `metrics.jsonl` (one JSON object
per step, `{"step": 3, "stage": "stage-0-grpo", "grpo/reward": 0.41, ...}`), `rollouts.jsonl`, `recipe.json` and
`eval/`. Values have the names that trackers show (`training/logging/trackers.py`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from earwise.data.clip_fields import clips_of_row
from earwise.errors import DataError
from earwise.evaluation.results import METRICS, EvalRun, read_run
from earwise.files import read_log
from earwise.report.page import tile
from earwise.report.plots import COLOURS, Series, curves
from earwise.report.samples.clips import players
from earwise.report.tables import table
from earwise.training.logging.trackers import LoggedSample, flatten_settings, group_metrics
from earwise.training.stages.table import STAGES

LOG, ROLLOUTS, RECIPE = "metrics.jsonl", "rollouts.jsonl", "recipe.json"
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
    "gkd/loss": ("Divergence from the teacher", "nats per trained token"),
    "gkd/length": ("Completion length", "tokens"),
    "compress/loss": ("Loss", "nats per trained token"),
    "compress/chain_tokens": ("Chain length", "tokens, as trained on"),
    "compress/delay": ("Token delay", "held-out tokens before the answer"),
}
"""Logged value -> title and note of its curve, in the order of the page. Other values follow under their own names."""
OTHER_CURVES = 24
"""Number of other curves that the page shows at most."""
LEAD_VALUES = tuple(f"{kind}/{entry.main_metric}" for kind, entry in STAGES.items())
"""Values that the lead mentions, one for each kind of stage."""
CARDS = 12


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The log of a training run."""

    name: str
    """Name of the run."""
    path: Path
    """The log's file."""
    rows: tuple[dict[str, Any], ...]
    """The rows that have a step."""

    @property
    def stages(self) -> list[str]:
        """Names of the stages in the order in which they ran; one empty name for a log of an earlier version."""
        return list(dict.fromkeys(row.get("stage", "") for row in self.rows))

    def stage_rows(self, stage: str) -> list[dict[str, Any]]:
        """The rows of one stage."""
        return [row for row in self.rows if row.get("stage", "") == stage]


def read_logs(paths: Sequence[Path]) -> list[TrainingLog]:
    """Read training logs; each is named by its folder, or by its path if two folders have the same name.

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
        names_differ = len({log_path.absolute().parent.name for log_path in paths}) == len(paths)
        logs.append(TrainingLog(name if names_differ else str(path), path, rows))
    return logs


def is_training_run(folder: Path) -> bool:
    """Whether a folder is that of a training run and not of an evaluation."""
    return (folder / LOG).is_file()


def read_evaluations(folder: Path, alone: bool) -> list[EvalRun]:
    """The evaluations of a training run by the first entry of its recipe's `eval:`; unfinished ones are left out.

    Args:
        folder: Folder of the training run.
        alone: Whether it is the only run of the page: then the evaluations before and after training are shown, else
            only the last one, named by the run.
    """
    folders = {side: folder / "eval" / f"{side}-0" for side in ("before", "after")}
    finished = [side for side, path in folders.items() if (path / METRICS).is_file()]
    if alone:
        return [read_run(folders[side], side) for side in finished]
    return [read_run(folders[side], folder.absolute().name) for side in finished[-1:]]


def training_curves(paths: Sequence[Path]) -> str:
    """Figures of everything that logs hold over steps, the well-known values first, one curve per run and stage; empty
    without logs.

    Raises:
        DataError: see `read_logs`.
    """
    logs = read_logs(paths)
    if not logs:
        return ""
    parts = [(log, stage) for log in logs for stage in log.stages]
    names = [
        " · ".join(filter(None, (log.name if len(logs) > 1 else "", stage if len(log.stages) > 1 else "")))
        for log, stage in parts
    ]
    series_by_value = _series_by_value(parts, names)
    titled = [key for key in CURVES if key in series_by_value]
    untitled = sorted(key for key in series_by_value if key not in CURVES)[:OTHER_CURVES]
    titled_figures = "".join(curves(series_by_value[key], *CURVES[key]) for key in titled)
    untitled_figures = "".join(curves(series_by_value[key], key) for key in untitled)
    summary = f"<summary>{len(untitled)} more curves</summary>"
    details = f'<details>{summary}<div class="plots">{untitled_figures}</div></details>'
    more = details if untitled_figures and titled_figures else ""
    legend = "".join(
        f'<span><span class="key" style="--c:var(--c{_colour(number)})"></span>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    legend_html = f'<div class="legend">{legend}</div>' if len(names) > 1 else ""
    return f'{legend_html}<div class="plots">{titled_figures or untitled_figures}</div>{more}'


def _series_by_value(parts: Sequence[tuple[TrainingLog, str]], names: Sequence[str]) -> dict[str, list[Series]]:
    """Logged value -> its curves, one for each log and stage of `parts` that holds it, named by `names`."""
    series_by_value: dict[str, list[Series]] = {}
    for number, (name, (log, stage)) in enumerate(zip(names, parts, strict=True)):
        rows = [(row["step"], group_metrics(row)) for row in log.stage_rows(stage)]
        for key in dict.fromkeys(key for _, row in rows for key in row):
            points = tuple((float(step), row[key]) for step, row in rows if math.isfinite(row.get(key, math.nan)))
            if points:
                series_by_value.setdefault(key, []).append(Series(name, points, _colour(number)))
    return series_by_value


def _colour(number: int) -> int:
    """Colour of the curve `number` of a page."""
    return (number + 1) % COLOURS


def rollout_cards(log: TrainingLog, budget: int) -> str:
    """Prompts from the first logged step to the last, evenly spaced, each with its clip, its options and the sampled
    completions with their rewards; empty if nothing was logged.

    Rows of earlier versions, which hold neither question nor clip, are left out.

    Args:
        log: The training log; `rollouts.jsonl` stands beside it.
        budget: Number of bytes that all clips together may take.
    """
    folder = log.path.parent
    rows = [row for row in read_log(folder / ROLLOUTS) if "question" in row]
    count = min(CARDS, len(rows))
    selected = [rows[number * (len(rows) - 1) // max(1, count - 1)] for number in range(count)]
    articles = []
    for row in selected:
        audio, bytes_used = players(clips_of_row(row, folder), budget)
        budget -= bytes_used
        articles.append(_card(row, audio, show_stage=len(log.stages) > 1))
    note = (
        f"{count} of {len(rows)} prompts in {ROLLOUTS}, evenly spaced over the run. The number before a completion is "
        "its reward, if the stage has rewards; the number after it is how often it was sampled."
    )
    return f'<p class="note">{note}</p><div class="cards">{"".join(articles)}</div>' if articles else ""


def _card(row: dict[str, Any], audio: str, *, show_stage: bool) -> str:
    """The card of one row of `rollouts.jsonl`; `audio` are its players (HTML)."""
    lines = "".join(
        f'<div class="run">{"" if reward is None else f"<b>{reward:g}</b>"}{escape(text) or "<i>nothing</i>"}'
        f"{f' <small>×{times}</small>' if times > 1 else ''}</div>"
        for reward, text, times in LoggedSample(row, ()).distinct_completions
    )
    options = "".join(
        f'<li class="{"gold" if option in row["answer"] else ""}">{escape(option)}</li>'
        for option in row["choices"] or row["answer"]
    )
    stage = f"<span>{escape(row['stage'])}</span>" if show_stage else ""
    mean = f"<span>mean reward {fmean(row['rewards']):.3g}</span>" if row["rewards"] else ""
    return (
        f'<article class="card"><header><span class="tag">step {row["step"]}</span>{stage}'
        f"{mean}</header>{audio}"
        f'<p class="question">{escape(row["question"])}</p><ul class="options">{options}</ul>'
        f'<div class="said">{lines}</div><footer>{escape(row["id"])}</footer></article>'
    )


def lead(log: TrainingLog) -> str:
    """What a run did, one sentence per stage (HTML)."""
    sentences = []
    for stage in log.stages:
        rows = log.stage_rows(stage)
        minutes = sum(row.get("seconds", 0.0) for row in rows) / 60
        sentence = f"<b>{escape(stage or log.name)}</b>: {len(rows)} steps in {minutes:.1f} minutes"
        for key in LEAD_VALUES:
            if ends := _ends(rows, key):
                sentence += f", {escape(CURVES[key][0].lower())} <b>{ends[0]:.3g} → {ends[1]:.3g}</b>"
        sentences.append(sentence + ".")
    return " ".join(sentences)


def tiles(log: TrainingLog) -> list[str]:
    """The numbers below the lead, as HTML: values of the last stage at its beginning and end."""
    rows = log.stage_rows(log.stages[-1])
    ends_by_title = [(title, ends) for key, (title, _) in CURVES.items() if (ends := _ends(rows, key))]
    result = [tile(title, f"{last:.3g}", f"from {first:.3g}") for title, (first, last) in ends_by_title[:4]]
    hearing = [row[key] for row in rows for key in row if key.endswith("/hearing")]
    if hearing:
        result.append(tile("Hearing", f"{hearing[-1]:+.2f}", "nats per token gained from the sound"))
    return result


def _ends(rows: Sequence[dict[str, Any]], key: str) -> tuple[float, float] | None:
    """Mean of a value over the first and over the last tenth of the rows; None if it was not logged."""
    values = [value for row in rows if (value := group_metrics(row).get(key)) is not None]
    tenth = max(1, len(values) // 10)
    return (fmean(values[:tenth]), fmean(values[-tenth:])) if values else None


def settings(log: TrainingLog) -> str:
    """The run's resolved recipe as a table; empty if there is none beside the log."""
    try:
        resolved = json.loads((log.path.parent / RECIPE).read_text(encoding="utf-8"))
        recipe = resolved["recipe"]
        stages = {f"stages.{number}": stage for number, stage in enumerate(recipe.pop("stages"))}
        values = flatten_settings({name: resolved[name] for name in ("earwise", "torch")} | recipe | stages)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    body = [[escape(name), f"<code>{escape(str(value))}</code>"] for name, value in values.items()]
    recipe_table = f'<div class="settings">{table(["Setting", escape(log.name)], body)}</div>'
    return f"<details><summary>The whole recipe, {len(body)} settings</summary>{recipe_table}</details>"
