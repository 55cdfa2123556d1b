"""The top of an evaluation report: the result in a sentence or two, and the numbers below it.

Part of `earwise.report`. All text of runs is escaped here.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from earwise.evaluation.results import EvalRun
from earwise.evaluation.scores import blind_controls, headline
from earwise.report.page import tile
from earwise.report.plots import percent, points
from earwise.report.tables import SCORE_LABELS, p_value

CONTROL_NAMES = {
    "silence": "silence",
    "noise": "noise",
    "shuffled": "the sound of another item",
    "text-only": "nothing",
}
"""Blind controls in words that complete "with ... in place of the sound"."""


def lead(runs: Sequence[EvalRun], paired: dict[str, Any] | None, name: str) -> str:
    """The result in a sentence or two: the score with n and interval, beside the blind control (HTML).

    Args:
        runs: The runs of the page, before first, after last.
        paired: The comparison of the last run with the first; None: there is none.
        name: Name of the headline score.
    """
    run = runs[-1]
    score = headline(run.metrics, name)
    if score is None:
        return f"<b>{escape(run.name)}</b> was asked {len(run.first)} items without gold answers, so there is no score."
    interval = f"95 % interval {100 * score.low:.1f}–{100 * score.high:.1f}"
    is_share = not score.lower_is_better and _counts_right_answers(run, name)
    direction = "; an error rate, so less is better" if score.lower_is_better else ""
    text = (
        f"<b>{escape(run.name)}</b> answers <b>{percent(score.value)}</b> of {score.n} questions right ({interval})"
        if is_share
        else f"<b>{escape(run.name)}</b> scores <b>{100 * score.value:.1f}</b> in {escape(_in_words(score.name))} on "
        f"{score.n} items, times 100 ({interval}{direction})"
    )
    if paired is not None:
        gain = paired[name]
        text += (
            f", <b>{points(gain['difference'])} points</b> against <b>{escape(runs[0].name)}</b> "
            f"({_figure(gain['accuracy_a'], is_share)}; interval {points(gain['low'])} to {points(gain['high'])}, "
            f"{p_value(gain['p'])}{', above 0 is better' if score.lower_is_better else ''})"
        )
    controls = blind_controls(run.metrics)
    if not controls:
        return f"{text}. No blind control was run."
    control, row = next(iter(controls.items()))
    is_certain = row["hearing_gain"][name]["low"] > 0
    warning = "" if is_certain else " The hearing gain is not distinguishable from zero."
    blind_value = _figure(row["accuracy"][name]["accuracy"], is_share)
    return f"{text}. With {CONTROL_NAMES.get(control, control)} in place of the sound: <b>{blind_value}</b>.{warning}"


def _in_words(name: str) -> str:
    """A score's name within a sentence."""
    return SCORE_LABELS.get(name, name)


def _counts_right_answers(run: EvalRun, name: str) -> bool:
    """Whether a score is 0 or 1 for every item, so that its mean is a share of right answers."""
    return all(row["scores"] is None or row["scores"].get(name) in (0, 1) for row in run.first.values())


def _figure(value: float, is_share: bool) -> str:
    """A score in percent, or times 100 without a unit where it is no share of right answers."""
    return percent(value) if is_share else f"{100 * value:.1f}"


def tiles(runs: Sequence[EvalRun], paired: dict[str, Any] | None, name: str) -> list[str]:
    """The numbers below the lead, as HTML; arguments as for `lead`."""
    run, metrics = runs[-1], runs[-1].metrics
    score = headline(metrics, name)
    assert score is not None
    result = [tile(run.name, percent(score.value), f"{_in_words(name)} score, n = {score.n}")]
    if paired is not None:
        gain = paired[name]
        result.append(tile(runs[0].name, percent(gain["accuracy_a"]), f"{gain['wins']} gained, {gain['losses']} lost"))
    for control, row in blind_controls(metrics).items():
        gain = points(row["hearing_gain"][name]["difference"])
        result.append(tile(f"Blind: {control}", percent(row["accuracy"][name]["accuracy"]), f"hearing gain {gain}"))
    if metrics["chance"] is not None:
        num_with_options = metrics.get("chance_n", metrics["n"])  # runs of earlier versions lack this field
        covers_all = num_with_options == metrics["n"]
        note = "a random option" if covers_all else f"of the {num_with_options} of {metrics['n']} with options"
        result.append(tile("Chance", percent(metrics["chance"]), note))
    num_unscorable = sum(metrics[status]["count"] for status in ("unparsed", "ambiguous", "error"))
    result.append(tile("Not scorable", percent(num_unscorable / metrics["unparsed"]["n"]), "counted as wrong"))
    return result
