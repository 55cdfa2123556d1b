"""How runs answer, apart from their scores: preferred positions, confusions, and what produced the numbers.

Part of `earwise.report`; rows and metrics in, HTML out. All text of runs is escaped here.
"""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape

from earwise.evaluation.aggregates.orders import orders_summary
from earwise.evaluation.results import EvalRun
from earwise.report.plots import heat_map, percent
from earwise.report.tables import NO_VALUE, ColouredRun, interval_cell, run_name, table

MAX_CLASSES = 10
"""Answers that a confusion matrix shows; rarer ones are left out."""


def positions(runs: Sequence[ColouredRun]) -> str:
    """Where the right option stands and which positions each run chooses; empty without options."""
    with_positions = [(run, colour) for run, colour in runs if run.metrics["position"]]
    if not with_positions:
        return ""
    head = ["Option’s position", "Is right"]
    for run, colour in with_positions:
        head += [f"{run_name(run, colour)}: chosen", "accuracy where right"]
    body = []
    for reference in with_positions[-1][0].metrics["position"]:
        if reference["position"] is None:
            cells = ["none named", NO_VALUE]
        else:
            cells = [str(reference["position"] + 1), percent(reference["gold_share"])]
        for run, _ in with_positions:
            row = next((row for row in run.metrics["position"] if row["position"] == reference["position"]), None)
            if row is None:
                cells += [NO_VALUE, NO_VALUE]
            else:
                cells += [percent(row["chosen_share"]), interval_cell(row) if row["n"] else NO_VALUE]
        body.append(cells)
    return table(head, body)


def orders(runs: Sequence[ColouredRun], name: str) -> str:
    """How much the score moves between orders of the options; empty if no run was asked in several.

    Args:
        runs: The runs.
        name: Name of the headline score.
    """
    body = []
    for run, colour in runs:
        result = orders_summary([row for row in run.rows if row["scores"] is not None], name)
        if result is None:
            continue
        lowest, highest = min(result["accuracy"]), max(result["accuracy"])
        deviation = f"<small>standard deviation {100 * result['deviation']:.1f}</small>"
        body.append(
            [
                run_name(run, colour), f"{result['n']}<small>{result['k']} orders</small>",
                percent(result["mean_accuracy"]), f"{percent(lowest)} to {percent(highest)}{deviation}",
                percent(result["always_right"]), percent(result["consistency"]),
            ]
        )  # fmt: skip
    head = [
        "Run", "Items", "Mean over orders", "Lowest to highest order", "Right in every order",
        "Same answer in every order",
    ]  # fmt: skip
    return table(head, body) if body else ""


def confusions(runs: Sequence[EvalRun]) -> str:
    """Right answer against given answer, one matrix per run and task whose answers repeat; else empty."""
    tasks = dict.fromkeys(row["task"] for row in runs[-1].first.values())
    matrices_by_task = {task: "".join(_confusion(run, task) for run in runs) for task in tasks}
    body = "".join(
        f'<h3>{escape(task)}</h3><div class="pair">{matrices}</div>'
        for task, matrices in matrices_by_task.items()
        if matrices
    )
    note = "Rows: the right answer; columns: the given one (“none”: not readable). Shade: share of the row."
    return f'{body}<p class="note">{note}</p>' if body else ""


def provenance(runs: Sequence[ColouredRun], sample_hashes: Sequence[str]) -> str:
    """Everything that produced the numbers: settings, task, revisions, hashes; one column per run.

    Args:
        runs: The runs.
        sample_hashes: SHA-256 of the `samples.jsonl` of each run.
    """
    keys = list(dict.fromkeys(key for run, _ in runs for key in run.settings))
    body = [[escape(key), *(_value(run.settings.get(key)) for run, _ in runs)] for key in keys]
    for label, key in (
        ("task", "task"),
        ("benchmark", "benchmark"),
        ("clips cut to the model's window", "truncated"),
        ("silent clips", "silent"),
        ("seconds of answering", "seconds"),
    ):
        body.append([label, *(_value(run.metrics.get(key)) for run, _ in runs)])
    body.append(["samples.jsonl, SHA-256", *(f"<code>{digest}</code>" for digest in sample_hashes)])
    return table(["Setting", *(run_name(run, colour) for run, colour in runs)], body)


def _confusion(run: EvalRun, task: str) -> str:
    """The matrix of one run and task, with its caption; empty where answers hardly repeat."""
    rows = [row for row in run.first.values() if row["task"] == task and row["gold"] and row["choices"]]
    gold_counts = Counter(row["gold"][0] for row in rows)
    classes = [answer for answer, count in gold_counts.most_common(MAX_CLASSES) if count > 1]
    if len(classes) < 2:
        return ""
    pairs = [
        (row["gold"][0], "none" if row["answer"] is None else row["answer"])
        for row in rows
        if row["gold"][0] in classes
    ]
    has_others = any(answer not in (*classes, "none") for _, answer in pairs)
    columns = [*classes, *(["other"] if has_others else []), "none"]
    counts = [[0] * len(columns) for _ in classes]
    for gold, answer in pairs:
        counts[classes.index(gold)][columns.index(answer if answer in columns else "other")] += 1
    num_hidden = len(gold_counts) - len(classes)
    hidden = f", {num_hidden} rarer answers left out" if num_hidden else ""
    caption = f'<p class="note"><b>{escape(run.name)}</b>: {len(pairs)} items{hidden}</p>'
    return f"<div>{heat_map(counts, classes, columns)}{caption}</div>"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(key))} = {escape(json.dumps(inner))}" for key, inner in value.items())
    return NO_VALUE if value is None else f"<code>{escape(str(value))}</code>"
