"""The result of runs: scores side by side, blind controls, format and accuracy apart, score against token delay.

Part of `earwise.report`; rows and metrics in, HTML out. All text of runs is escaped here. `name` is always the name of
the headline score, one for all runs of a page (`evaluation.scores.shared_headline`).
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from earwise.errors import DataError
from earwise.evaluation.compare import compare
from earwise.evaluation.metrics.mmau import SCORE_NOTES
from earwise.evaluation.results import EvalRun, Row
from earwise.evaluation.scores import blind_controls, headline, is_correct, mean_delay
from earwise.evaluation.summary import GROUPS
from earwise.report.plots import CostPoint, Interval, against_cost, intervals, percent
from earwise.report.published_figures import PublishedFigure, published_table
from earwise.report.samples.outcomes import OUTCOMES, outcomes, shared_items
from earwise.report.tables import NO_VALUE, ColouredRun, gain_cell, interval_cell, p_value, run_name, score_label, table

GROUPS_SHOWN = 24
"""Values of a group that the page lists; the others are in metrics.json."""


def paired_or_none(runs: Sequence[ColouredRun]) -> dict[str, Any] | None:
    """The comparison of the last run with the first on the items that both have; None for one run or no common item."""
    first, last = runs[0][0], runs[-1][0]
    if first is last:
        return None
    try:
        return compare(first, last, common=True)
    except DataError:
        return None


def headline_figure(runs: Sequence[ColouredRun], name: str, published: Sequence[PublishedFigure] = ()) -> str:
    """The headline score of every run and of its blind controls on one scale, beside published figures.

    Args:
        runs: The runs.
        name: Name of the headline score.
        published: Figures of other models.
    """
    lines = []
    for run, colour in runs:
        score = headline(run.metrics, name)
        assert score is not None
        lines.append(Interval(run.name, score.value, score.low, score.high, colour, f"real sound · n = {score.n}"))
    for run, _ in runs:
        for control in blind_controls(run.metrics):
            score = headline(run.metrics, name, control)
            if score is not None:
                note = f"blind control · n = {score.n}"
                lines.append(Interval(f"{run.name}, {control}", score.value, score.low, score.high, -1, note))
    lines += [Interval(each.model, each.value / 100, None, None, 0, each.source) for each in published]
    return intervals(lines, _chance_of_all(runs[-1][0])) + published_table(published)


def caveats(runs: Sequence[ColouredRun], name: str) -> str:
    """What a reader must know before comparing or trusting the figures: runs on different items, questions that share
    clips, answers in the right form that cannot be read (HTML; empty if there is nothing to say).

    Args:
        runs: The runs.
        name: Name of the headline score.
    """
    notes = [*_different_items([run for run, _ in runs])]
    for run, _ in runs:
        shared = (run.metrics["accuracy"] or {}).get(name, {})
        if "clips" in shared:
            notes.append(
                f"<b>{escape(run.name)}</b>: {run.metrics['n']} questions share {int(shared['clips'])} clips. Answers "
                "on one clip are not independent, so intervals are clustered by clip (design effect of the headline "
                f"score: {shared['design_effect']:.2f})."
            )
        elif "clusters" in shared:
            notes.append(
                f"<b>{escape(run.name)}</b>: {run.metrics['n']} items of {int(shared['clusters'])} speakers or clips. "
                "Items of one speaker are not independent, so intervals resample whole speakers or clips."
            )
        notes += [f"<b>{escape(run.name)}</b>: {escape(remark)}" for remark in run.metrics.get("remarks", [])]
        notes += _unread_in_form(run)
    return "".join(f'<p class="caveat">{note}</p>' for note in notes)


def _different_items(runs: Sequence[EvalRun]) -> list[str]:
    """Sentences about runs that were not asked the same items (HTML)."""
    last, notes = runs[-1], []
    for run in runs[:-1]:
        num_shared = len(shared_items(run, last))
        names = f"<b>{escape(run.name)}</b> and <b>{escape(last.name)}</b>"
        if not num_shared:
            notes.append(
                f"{names} have no item in common: they stand on one scale here, but a difference between them may be "
                "one of the items and not of the models."
            )
        elif num_shared < max(len(run.first), len(last.first)):
            notes.append(
                f"{names} share {num_shared} items of {len(run.first)} and {len(last.first)}: paired differences are "
                "of these, the scores above of all items of each run."
            )
    return notes


def _unread_in_form(run: EvalRun) -> list[str]:
    """A sentence about answers that are in the requested form and still cannot be read (HTML)."""
    formatted = [row for row in run.first.values() if row.get("formatted")]
    num_unread = sum(row["status"] in ("unparsed", "ambiguous") for row in formatted)
    if not num_unread:
        return []
    return [
        f"<b>{escape(run.name)}</b>: {num_unread} of {len(formatted)} answers in the requested form could still not be "
        "read. “Format” asks only whether the tags are there; “unparsed” and “ambiguous” whether the text between them "
        f'names exactly one option. <a href="#samples?status=unparsed">Look at them</a>.'
    ]


def overall(runs: Sequence[ColouredRun]) -> str:
    """One line per run: all its scores, the format, and the items that could not be scored."""
    names = list(dict.fromkeys(name for run, _ in runs for name in run.metrics["accuracy"]))
    titles = [escape(score_label(name)) for name in names]
    head = ["Run", "n", *titles, "Format", "Unparsed", "Ambiguous", "Errors", "Cut off"]
    body = []
    for run, colour in runs:
        metrics = run.metrics
        counts = [
            f"{percent(metrics[status]['share'])}<small>{metrics[status]['count']} of {metrics[status]['n']}</small>"
            for status in ("unparsed", "ambiguous", "error", "cut")
        ]
        scores = [interval_cell(metrics["accuracy"].get(name)) for name in names]
        body.append([run_name(run, colour), str(metrics["n"]), *scores, interval_cell(metrics["format"]), *counts])
    notes: dict[str, str] = {}
    for run, _ in runs:
        notes |= run.metrics.get("score_notes", SCORE_NOTES)  # runs of earlier versions hold no notes
    listed = "; ".join(f"<b>{escape(name)}</b>: {escape(note)}" for name, note in notes.items())
    caption = f"Scores in percent, 95 % intervals. {listed}. An answer that cannot be read is wrong and stays in n."
    return table(head, body, caption)


def outcome_counts(runs: Sequence[ColouredRun], name: str) -> str:
    """What was won and lost between the first and the last run, each count a link to these samples; empty for one run.

    Args:
        runs: The runs.
        name: Name of the headline score.
    """
    plain_runs = [run for run, _ in runs]
    first, last = plain_runs[0], plain_runs[-1]
    shared = shared_items(first, last)
    if first is last or not shared:
        return ""
    counts = Counter(result for item, result in outcomes(plain_runs, name).items() if item in shared)
    results = [result for result in OUTCOMES if counts[result]]
    cells = [
        f'<a href="#samples?outcome={result}">{counts[result]}</a>'
        f"<small>{percent(counts[result] / len(shared))}</small>"
        for result in results
    ]
    head = ["Compared", "Items", *(result.capitalize() for result in results)]
    return table(head, [[f"{escape(first.name)} → {escape(last.name)}", str(len(shared)), *cells]])


def by_options(runs: Sequence[ColouredRun], name: str) -> str:
    """Score beside chance by number of options; empty where all items have equally many."""
    kinds_by_run = [run.metrics.get("kinds", {}) for run, _ in runs]
    kinds = list(dict.fromkeys(kind for kinds in kinds_by_run for kind in kinds))
    if len(kinds) < 2:
        return ""
    body = []
    for kind in kinds:
        rows = [kinds.get(kind) for kinds in kinds_by_run]
        first = next(row for row in rows if row)
        chance = NO_VALUE if first["chance"] is None else percent(first["chance"])
        cells = [interval_cell(row[name] if row else None) for row in rows]
        body.append([escape(kind), str(first[name]["n"]), chance, *cells])
    return table(["Kind of question", "n", "Chance", *(run_name(run, colour) for run, colour in runs)], body)


def by_group(runs: Sequence[ColouredRun], paired: dict[str, Any] | None, name: str) -> str:
    """Score by task, category and difficulty for every run, with the paired difference of the last run to the first.

    Args:
        runs: The runs.
        paired: What `paired_or_none` returned; None: no differences.
        name: Name of the score.
    """
    tables = []
    for group in GROUPS:
        values = list(dict.fromkeys(value for run, _ in runs for value in run.metrics["by"].get(group, {})))
        if len(values) < 2 and not (group == "task" and values):
            continue
        body = []
        for value in values[:GROUPS_SHOWN]:
            metrics = [run.metrics["by"].get(group, {}).get(value, {}).get(name) for run, _ in runs]
            n = next(metric["n"] for metric in metrics if metric)
            link = f'<a href="#samples?{escape(urlencode({group: value}))}">{escape(value)}</a>'
            cells = [link, str(n), *(interval_cell(metric) for metric in metrics)]
            if paired is not None:
                differences = paired["by"].get(group, {}).get(value)
                cells.append(gain_cell(differences[name]) if differences else NO_VALUE)
            body.append(cells)
        head = [group.replace("_", "-").capitalize(), "n", *(run_name(run, colour) for run, colour in runs)]
        head += ["Difference, points"] if paired is not None else []
        num_hidden = len(values) - GROUPS_SHOWN
        note = f"<p class='note'>{num_hidden} smaller groups are in metrics.json.</p>" if num_hidden > 0 else ""
        tables.append(table(head, body) + note)
    return "".join(tables)


def blind_table(runs: Sequence[ColouredRun], name: str) -> str:
    """The score of each run without the sound, and the hearing gain."""
    body, left_out = [], []
    for run, colour in runs:
        real = run.metrics["accuracy"][name]
        for control, row in blind_controls(run.metrics).items():
            gain = row["hearing_gain"][name]
            hears = gain["low"] > 0
            conclusion = "hears" if hears else "not shown to hear"
            body.append(
                [run_name(run, colour), escape(control), interval_cell(real), interval_cell(row["accuracy"][name]),
                 gain_cell(gain), p_value(gain["p"]), f'<span class="{"up" if hears else "down"}">{conclusion}</span>']
            )  # fmt: skip
        for control, row in (run.metrics.get("blind") or {}).items():
            if "left_out" in row:
                left_out.append(f"{escape(run.name)}, {escape(control)}: {escape(row['left_out'])}")
    if not body and not left_out:
        return (
            '<p class="note">No blind control was run: '
            "what part of the score comes from the text alone is not known.</p>"
        )
    head = ["Run", "In place of the sound", "Real", "Blind", "Hearing gain, points", "p, paired", "Conclusion"]
    notes = "".join(f"<p class='note'>Left out: {line}</p>" for line in left_out)
    return (table(head, body) if body else "") + notes


def format_apart(before: EvalRun, after: EvalRun, name: str) -> str:
    """How much of a gain is form (answers that can be read at all), and how much is knowing the answer."""
    rows_before = before.first
    pairs = [(rows_before[item], row) for item, row in after.first.items() if item in rows_before and row["scores"]]
    readable_pairs = [pair for pair in pairs if all(row["status"] == "ok" for row in pair)]
    body = []
    for side, run in enumerate((before, after)):
        rows = [pair[side] for pair in pairs]
        readable = [row for row in rows if row["status"] == "ok"]
        readable_in_both = [pair[side] for pair in readable_pairs]
        body.append(
            [
                escape(run.name),
                _rate([row["formatted"] for row in rows if row["formatted"] is not None]),
                _rate([row["status"] == "ok" for row in rows]),
                *(_rate(_correct(group, name)) for group in (rows, readable, readable_in_both)),
            ]
        )
    head = [
        "Run",
        "In the requested format",
        "Readable",
        "Right, of all",
        "Right, of its readable",
        "Right, of those readable in both",
    ]
    note = (
        "A rise in the first two columns alone is a gain in form. The last column counts only the items on which both "
        "runs gave a readable answer, so that a rise there is a gain in knowledge."
    )
    return table(head, body, note)


def delay_table(runs: Sequence[ColouredRun], name: str) -> str:
    """Score against token delay, one point per run; empty unless two runs know their delay and one of them reasons."""
    delays = [(run, colour, tokens) for run, colour in runs if (tokens := mean_delay(run)) is not None]
    if len(delays) < 2 or not any(tokens for _, _, tokens in delays):
        return ""
    cost_points, body = [], []
    for run, colour, tokens in delays:
        metric = run.metrics["accuracy"][name]
        cost_points.append(CostPoint(run.name, tokens, metric["accuracy"], metric["low"], metric["high"], colour))
        body.append([run_name(run, colour), f"{tokens:.1f}", interval_cell(metric)])
    figure = against_cost(cost_points, "Score against delay", "share right, over mean tokens before the answer")
    return f'<div class="plots">{figure}</div>' + table(["run", "tokens before the answer", "right, %"], body)


def _chance_of_all(run: EvalRun) -> float | None:
    """Accuracy of guessing; None if some items have no options, so that no one level applies to the whole score."""
    metrics = run.metrics
    num_with_options = metrics.get("chance_n", metrics["n"])  # runs of earlier versions lack this field
    return metrics["chance"] if num_with_options == metrics["n"] else None


def _correct(rows: Sequence[Row], name: str) -> list[bool]:
    return [is_correct(row, name) for row in rows]


def _rate(flags: Sequence[bool]) -> str:
    return f"{percent(sum(flags) / len(flags))}<small>{sum(flags)} of {len(flags)}</small>" if flags else NO_VALUE
