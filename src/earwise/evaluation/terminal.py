"""The metrics of a run as a small table for the terminal; what `earwise evaluate` prints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earwise.evaluation.results import TIMING
from earwise.evaluation.scores import headline, lower_is_better

LABEL_WIDTH, SCORE_WIDTH = 20, 10


def as_text(metrics: Mapping[str, Any]) -> str:
    """The result as a table: one column per score, the interval of the headline score, and the blind controls.

    Args:
        metrics: What `metrics.json` holds.
    """
    if metrics["accuracy"] is None:
        no_score = f"{metrics['unlabelled']} items were asked, and without gold answers or a judge there is no score"
        return "\n".join([no_score, *_notes(metrics)])
    names = list(metrics["accuracy"])
    less = ", less is better" if lower_is_better(metrics, metrics["headline"]) else ""
    columns = "".join(f"{name:>{_width(name)}}" for name in names)
    lines = [
        f"{metrics['model']}: n = {metrics['n']}{_chance(metrics)}",
        f"{'':{LABEL_WIDTH}}{columns}   95 % interval ({metrics['headline']}{less})",
        _line("with sound", metrics["accuracy"], names, metrics["headline"]),
    ]
    if len(metrics["kinds"]) > 1:
        for kind, row in metrics["kinds"].items():
            lines.append(_line(f"  {kind}, {int(row[metrics['headline']]['n'])}", row, names, metrics["headline"]))
    for control, row in metrics.get("blind", {}).items():
        if headline(metrics, control=control) is None:
            lines.append(f"{control:{LABEL_WIDTH}}left out: {row.get('left_out', 'no item has a gold answer')}")
            continue
        gain = row["hearing_gain"][metrics["headline"]]
        lines.append(_line(control, row["accuracy"], names, metrics["headline"]))
        lines.append(
            f"{'  hearing gain':{LABEL_WIDTH}}{100 * gain['difference']:>+{SCORE_WIDTH}.1f}   "
            f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}], p {gain['p']:.4f}"
        )
    return "\n".join(lines + _notes(metrics))


def timing_text(out: Path) -> str | None:
    """One line about the time of the newest call of a run; None if it asked nothing.

    Args:
        out: Folder of the run.
    """
    try:
        timing = json.loads((out / TIMING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    rate = timing["items"] / max(timing["seconds"], 1e-9)
    return f"{rate:.1f} items/s with sound; {100 * timing['outside_model']:.1f} % of the time outside the model"


def _orders_and_draws(metrics: Mapping[str, Any]) -> list[str]:
    """Lines about several orders of the options and several completions of each item."""
    lines = []
    if orders := metrics.get("permutations"):
        accuracies = ", ".join(f"{100 * value:.1f}" for value in orders["accuracy"])
        lines.append(
            f"over {orders['k']} orders of the options {100 * orders['mean_accuracy']:.1f} ({accuracies}; spread "
            f"{100 * orders['spread']:.1f}); one answer in every order {100 * orders['consistency']:.1f}"
        )
    if draws := metrics.get("draws"):
        for label, name in (("pass", "pass_at"), ("majority", "majority_at")):
            values = ", ".join(f"@{k} {100 * metric['accuracy']:.1f}" for k, metric in draws[name].items())
            lines.append(f"{label:10}{values} (of {draws['k']} completions)")
        for weighting, metrics_at in draws.get("weighted_majority_at", {}).items():
            values = ", ".join(f"@{k} {100 * metric['accuracy']:.1f}" for k, metric in metrics_at.items())
            lines.append(f"{'majority':10}{values} weighted by confidence ({weighting})")
        if (score := draws.get("score")) and abs(score["accuracy"] - draws["mean"]) > 1e-9:
            lines.append(f"{'mean':10}{100 * score['accuracy']:.1f} over all completions")
    if overlap := metrics.get("training_overlap"):
        without = (overlap["without"] or {}).get(metrics["headline"])
        rest = f"; {100 * without['accuracy']:.1f} without them" if without else ""
        lines.append(f"{overlap['count']} of {overlap['n']} items stand in the training data{rest}")
        if overlap.get("missing_clips"):
            lines.append(
                f"{overlap['missing_clips']} training clips are not there; their items were looked for by video and "
                "question only"
            )
    return lines


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    """Lines about the form of the completions and about unreadable and silent items."""
    lines = _orders_and_draws(metrics)
    if metrics.get("benchmark"):
        lines.append(f"edition: {metrics['benchmark']}")
    if metrics["format"] is not None:
        lines.append(f"in the requested format {100 * metrics['format']['accuracy']:>7.1f}")
    counts = {name: metrics[name]["count"] for name in ("unparsed", "ambiguous", "error")}
    unreadable = [f"{count} {name}" for name, count in counts.items() if count]
    if unreadable:
        lines.append(f"{'counted as wrong' if metrics['accuracy'] else 'not readable'}: {', '.join(unreadable)}")
    if metrics["cut"]["count"]:
        lines.append(
            f"{metrics['cut']['count']} of {metrics['cut']['n']} completions were cut at the token limit; allow more "
            "with --max-new-tokens"
        )
    shared = (metrics["accuracy"] or {}).get(metrics["headline"], {})
    if "clips" in shared:
        lines.append(
            f"{metrics['n']} questions share {int(shared['clips'])} clips: intervals are clustered by clip "
            f"(design effect {shared['design_effect']:.2f})"
        )
    elif "clusters" in shared:
        lines.append(
            f"{metrics['n']} items of {int(shared['clusters'])} speakers or clips: intervals resample those, not items"
        )
    if metrics["unlabelled"] and metrics["accuracy"]:
        lines.append(f"not scored: {metrics['unlabelled']} items without a gold answer, or that wait for a judge")
    for judge, row in metrics.get("judges", {}).get("judges", {}).items():
        lines.append(f"{judge} as judge {100 * row['mean']:>7.1f} of {row['n']} answers")
    for pair in metrics.get("judges", {}).get("agreement", []):
        kappa = "none" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        lines.append(
            f"{' and '.join(pair['judges'])} agree in {100 * pair['equal']:.1f} % of answers, weighted kappa {kappa}"
        )
    lines += metrics.get("remarks", [])
    if metrics["silent"]:
        lines.append(f"{metrics['silent']} items have silent clips")
    return lines


def _chance(metrics: Mapping[str, Any]) -> str:
    """The accuracy of guessing, and the items that it refers to."""
    if metrics["chance"] is None:
        return ", all open: no chance level"
    chance = f", chance {100 * metrics['chance']:.1f} %"
    if metrics["chance_n"] < metrics["n"]:
        num_open = metrics["n"] - metrics["chance_n"]
        return f"{chance} of the {metrics['chance_n']} with options ({num_open} are open)"
    return chance


def _width(name: str) -> int:
    """Width of the column of a score."""
    return max(SCORE_WIDTH, len(name) + 2)


def _line(label: str, accuracy: Mapping[str, Any], names: list[str], headline_name: str) -> str:
    """One row of the table; a metric that these items do not have is left blank."""
    cells = [
        f"{100 * accuracy[name]['accuracy']:>{_width(name)}.1f}" if name in accuracy else " " * _width(name)
        for name in names
    ]
    interval = accuracy[headline_name]
    return f"{label:{LABEL_WIDTH}}{''.join(cells)}   {100 * interval['low']:.1f}-{100 * interval['high']:.1f}"
