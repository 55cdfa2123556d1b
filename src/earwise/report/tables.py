"""The tables of a report: accuracies side by side, controls, format and accuracy apart, confusion, provenance.

Part of `earwise.report`; rows and metrics in, HTML out. All text of runs is escaped here.
"""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from earwise.errors import DataError
from earwise.evaluate.compare import compare
from earwise.evaluate.results import Row, Run
from earwise.evaluate.summary import GROUPS, KINDS
from earwise.report.plots import Dot, Interval, against, heat_map, intervals, percent, points

KIND_NOTES = {
    "official": "the official matcher on the raw output",
    "strict": "the answer is the option's text, letter for letter",
    "lenient": "the official matcher on the extracted answer",
}
CONFUSED = 10  # classes shown; the rest are one row
GROUPS_SHOWN = 24


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "") -> str:
    """An HTML table from cells that are HTML already; the first column names the row."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    rows = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in body
    )
    note = f'<p class="note">{caption}</p>' if caption else ""
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def interval_cell(row: dict[str, Any] | None) -> str:
    """Accuracy with its interval."""
    if row is None:
        return "–"
    return f"{100 * row['accuracy']:.1f}<small>{100 * row['low']:.1f}–{100 * row['high']:.1f}</small>"


def gain_cell(row: dict[str, Any]) -> str:
    """A paired difference with its interval, coloured where the interval leaves out 0."""
    sure = "up" if row["low"] > 0 else "down" if row["high"] < 0 else "level"
    return (
        f'<b class="{sure}">{points(row["difference"])}</b><small>{points(row["low"])} to {points(row["high"])}</small>'
    )


def p_value(p: float) -> str:
    """A p value that never claims to be 0 and never breaks over a line.

    >>> p_value(0.0321).split()
    ['p', '=', '0.032']
    """
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def kind_of(runs: Sequence[Run]) -> str:
    """The kind of score in every headline, one for all runs: lenient as soon as one of them reasons aloud."""
    return "lenient" if any(run.metrics["headline"] == "lenient" for run in runs) else "official"


def run_name(run: Run, colour: int) -> str:
    """The run's name with its colour."""
    return f'<span class="key" style="--c:var(--c{colour})"></span>{escape(run.name)}'


def controls_of(run: Run) -> dict[str, Any]:
    """The blind controls that were run, by name."""
    return {name: row for name, row in (run.metrics.get("blind") or {}).items() if "accuracy" in row}


def delay_of(run: Run) -> float | None:
    """Mean tokens before the answer begins; None if a row does not say."""
    told = [row.get("reasoning_tokens") for row in run.rows if row["status"] != "error"]
    counts = [tokens for tokens in told if tokens is not None]
    return sum(counts) / len(counts) if counts and len(counts) == len(told) else None


def delay(runs: Sequence[tuple[Run, int]], kind: str) -> str:
    """Score against token delay, a dot a run; empty unless two runs say theirs and one of them reasons."""
    found = [(run, colour, tokens) for run, colour in runs if (tokens := delay_of(run)) is not None]
    if len(found) < 2 or not any(tokens for _, _, tokens in found):
        return ""
    scores = [run.metrics["accuracy"][kind] for run, _, _ in found]
    dots = [
        Dot(run.name, tokens, row["accuracy"], row["low"], row["high"], colour)
        for (run, colour, tokens), row in zip(found, scores, strict=True)
    ]
    body = [
        [run_name(run, colour), f"{tokens:.1f}", interval_cell(row)]
        for (run, colour, tokens), row in zip(found, scores, strict=True)
    ]
    figure = against(dots, "Score against delay", "share right, over mean tokens before the answer")
    return f'<div class="plots">{figure}</div>' + table(["run", "tokens before the answer", "right, %"], body)


def headline_figure(runs: Sequence[tuple[Run, int]], kind: str) -> str:
    """Every run and its blind controls on one scale."""
    lines = []
    for run, colour in runs:
        row = run.metrics["accuracy"][kind]
        lines.append(
            Interval(run.name, row["accuracy"], row["low"], row["high"], colour, f"real sound · n = {row['n']}")
        )
    for run, _ in runs:
        for name, control in controls_of(run).items():
            row = control["accuracy"][kind]
            lines.append(
                Interval(
                    f"{run.name}, {name}",
                    row["accuracy"],
                    row["low"],
                    row["high"],
                    -1,
                    f"blind control · n = {row['n']}",
                )
            )
    return intervals(lines, chance_of_all(runs[-1][0]))


def chance_of_all(run: Run) -> float | None:
    """Accuracy of a guess; None if some items have no options, so that no one level stands beside the accuracy."""
    metrics = run.metrics
    covers = metrics.get("chance_n", metrics["n"])  # runs of older versions do not say
    return metrics["chance"] if covers == metrics["n"] else None


def by_kind(runs: Sequence[tuple[Run, int]], kind: str) -> str:
    """Accuracy beside chance by number of options; empty where all items have equally many."""
    kinds = [run.metrics.get("kinds", {}) for run, _ in runs]
    names = list(dict.fromkeys(name for found in kinds for name in found))
    if len(names) < 2:
        return ""
    body = []
    for name in names:
        rows = [found.get(name) for found in kinds]
        first = next(row for row in rows if row)
        chance = "–" if first["chance"] is None else percent(first["chance"])
        size = str(first[kind]["n"])
        body.append([escape(name), size, chance, *(interval_cell(row and row[kind]) for row in rows)])
    return table(["Kind of question", "n", "Chance", *(run_name(run, colour) for run, colour in runs)], body)


def overall(runs: Sequence[tuple[Run, int]]) -> str:
    """One line a run: the three accuracies, format, and what could not be scored."""
    head = ["Run", "n", *(kind.capitalize() for kind in KINDS), "Format", "Unparsed", "Ambiguous", "Errors", "Cut off"]
    body = []
    for run, colour in runs:
        m = run.metrics
        counts = [
            f"{percent(m[name]['share'])}<small>{m[name]['count']} of {m[name]['n']}</small>"
            for name in ("unparsed", "ambiguous", "error", "cut")
        ]
        kinds = [interval_cell(m["accuracy"][kind]) for kind in KINDS]
        body.append([run_name(run, colour), str(m["n"]), *kinds, interval_cell(m["format"]), *counts])
    notes = "; ".join(f"<b>{kind}</b>: {note}" for kind, note in KIND_NOTES.items())
    return table(
        head, body, f"Accuracy in percent, 95 % intervals. {notes}. What cannot be read is wrong and stays in n."
    )


def by_group(runs: Sequence[tuple[Run, int]], paired: dict[str, Any] | None, kind: str) -> str:
    """Accuracy by task, category and difficulty for every run, with the paired difference of last against first."""
    parts = []
    for group in GROUPS:
        names: list[str] = []
        for run, _ in runs:
            names += [name for name in run.metrics["by"].get(group, {}) if name not in names]
        if len(names) < 2 and not (group == "task" and names):
            continue
        body = []
        for name in names[:GROUPS_SHOWN]:
            rows = [run.metrics["by"].get(group, {}).get(name, {}).get(kind) for run, _ in runs]
            size = next(row["n"] for row in rows if row)
            line = [escape(name), str(size), *(interval_cell(row) for row in rows)]
            if paired is not None:
                found = paired["by"].get(group, {}).get(name)
                line.append(gain_cell(found[kind]) if found else "–")
            body.append(line)
        head = [group.replace("_", "-").capitalize(), "n", *(run_name(run, colour) for run, colour in runs)]
        if paired is not None:
            head.append("Difference, points")
        rest = (
            f"<p class='note'>{len(names) - GROUPS_SHOWN} smaller groups are in metrics.json.</p>"
            if len(names) > GROUPS_SHOWN
            else ""
        )
        parts.append(table(head, body) + rest)
    return "".join(parts)


def blind(runs: Sequence[tuple[Run, int]], kind: str) -> str:
    """What each run scores without the sound, and the hearing gain."""
    body, left_out = [], []
    for run, colour in runs:
        real = run.metrics["accuracy"][kind]
        for name, control in controls_of(run).items():
            gain = control["hearing_gain"][kind]
            hears = gain["low"] > 0
            verdict = f'<span class="{"up" if hears else "down"}">{"hears" if hears else "not shown to hear"}</span>'
            body.append(
                [run_name(run, colour), escape(name), interval_cell(real), interval_cell(control["accuracy"][kind]),
                 gain_cell(gain), p_value(gain["p"]), verdict]
            )  # fmt: skip
        for name, control in (run.metrics.get("blind") or {}).items():
            if "left_out" in control:
                left_out.append(f"{escape(run.name)}, {escape(name)}: {escape(control['left_out'])}")
    if not body and not left_out:
        return (
            '<p class="note">No blind control was run: '
            "what part of the accuracy comes from the text alone is not known.</p>"
        )
    head = ["Run", "Instead", "Real", "Blind", "Hearing gain, points", "p, paired", "Verdict"]
    notes = "".join(f"<p class='note'>Left out: {line}</p>" for line in left_out)
    return (table(head, body) if body else "") + notes


def format_apart(before: Run, after: Run, kind: str) -> str:
    """How much of a gain is form (answers that can be read at all) and how much is knowing the answer."""
    shared = [(before.first[item], row) for item, row in after.first.items() if item in before.first and row["scores"]]
    both = [(a, b) for a, b in shared if a["status"] == "ok" and b["status"] == "ok"]
    body = []
    for run, side in ((before, 0), (after, 1)):
        rows = [pair[side] for pair in shared]
        read = [row for row in rows if row["status"] == "ok"]
        same = [pair[side] for pair in both]
        formatted = [row["formatted"] for row in rows if row["formatted"] is not None]
        body.append(
            [
                escape(run.name),
                _rate(formatted),
                _rate([row["status"] == "ok" for row in rows]),
                *(_rate(_right(found, kind)) for found in (rows, read, same)),
            ]
        )
    head = [
        "Run",
        "In the asked format",
        "Readable",
        "Right, of all",
        "Right, of its readable",
        "Right, of those readable in both",
    ]
    note = (
        "<p class='note'>A rise in the first two columns alone is a gain in form; the last column holds the items "
        "fixed on which both runs gave a readable answer, so that a rise there is a gain in knowing.</p>"
    )
    return table(head, body) + note


def _right(rows: Sequence[Row], kind: str) -> list[bool]:
    return [row["scores"][kind] >= 1 for row in rows]


def _rate(flags: Sequence[bool]) -> str:
    return f"{percent(sum(flags) / len(flags))}<small>{sum(flags)} of {len(flags)}</small>" if flags else "–"


def positions(runs: Sequence[tuple[Run, int]]) -> str:
    """Where the right option stands and which places each run chooses; empty without options."""
    run_rows = [(run, colour, run.metrics["position"]) for run, colour in runs if run.metrics["position"]]
    if not run_rows:
        return ""
    head = ["Option’s place", "Is right"]
    for run, colour, _ in run_rows:
        head += [f"{run_name(run, colour)}: chosen", "accuracy where right"]
    body = []
    for first in run_rows[-1][2]:
        named = first["position"] is not None
        line = [str(first["position"] + 1), percent(first["gold_share"])] if named else ["none named", "–"]
        for _, _, rows in run_rows:
            row = next((row for row in rows if row["position"] == first["position"]), None)
            line += (
                ["–", "–"] if row is None else [percent(row["chosen_share"]), interval_cell(row) if row["n"] else "–"]
            )
        body.append(line)
    return table(head, body)


def confusions(runs: Sequence[Run]) -> str:
    """Right answer against given answer, a matrix per run and task whose answers repeat; else empty."""
    tasks = dict.fromkeys(row["task"] for row in runs[-1].first.values())
    matrices = [(task, [_confusion(run, task) for run in runs]) for task in tasks]
    body = "".join(
        f'<h3>{escape(task)}</h3><div class="pair">{"".join(found)}</div>' for task, found in matrices if any(found)
    )
    note = "Rows: the right answer; columns: the given one (“none”: not readable). Shade: share of the row."
    return f'{body}<p class="note">{note}</p>' if body else ""


def _confusion(run: Run, task: str) -> str:
    """The matrix of one run and task, with its caption; empty where answers hardly repeat."""
    rows = [row for row in run.first.values() if row["task"] == task and row["gold"] and row["choices"]]
    common = Counter(row["gold"][0] for row in rows)
    classes = [name for name, count in common.most_common(CONFUSED) if count > 1]
    if len(classes) < 2:
        return ""
    rows = [row for row in rows if row["gold"][0] in classes]
    given = [(row["gold"][0], "none" if row["answer"] is None else row["answer"]) for row in rows]
    strays = any(answer not in (*classes, "none") for _, answer in given)
    columns = [*classes, *(["other"] if strays else []), "none"]
    counts = [[0] * len(columns) for _ in classes]
    for gold, answer in given:
        counts[classes.index(gold)][columns.index(answer if answer in columns else "other")] += 1
    rest = f", {len(common) - len(classes)} rarer answers left out" if len(common) > len(classes) else ""
    caption = f'<p class="note"><b>{escape(run.name)}</b>: {len(given)} items{rest}</p>'
    return f"<div>{heat_map(counts, classes, columns)}{caption}</div>"


def provenance(runs: Sequence[tuple[Run, int]], hashes: Sequence[str]) -> str:
    """What made the numbers: settings, revisions, hashes; one column a run."""
    keys: list[str] = []
    for run, _ in runs:
        keys += [key for key in run.settings if key not in keys]
    body = [[escape(key), *(_value(run.settings.get(key)) for run, _ in runs)] for key in keys]
    body.append(["benchmark", *(_value(run.metrics.get("benchmark")) for run, _ in runs)])
    body.append(["clips cut to the model's window", *(_value(run.metrics["truncated"]) for run, _ in runs)])
    body.append(["silent clips", *(_value(run.metrics["silent"]) for run, _ in runs)])
    body.append(["seconds of answering", *(_value(run.metrics["seconds"]) for run, _ in runs)])
    body.append(["samples.jsonl, SHA-256", *(f"<code>{digest}</code>" for digest in hashes)])
    return table(["Setting", *(run_name(run, colour) for run, colour in runs)], body)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(key))} = {escape(json.dumps(inner))}" for key, inner in value.items())
    return "–" if value is None else f"<code>{escape(str(value))}</code>"


def paired_or_none(runs: Sequence[tuple[Run, int]]) -> dict[str, Any] | None:
    """The comparison of the last run with the first on the items they share; None for one run or no shared item."""
    first, last = runs[0][0], runs[-1][0]
    if first is last:
        return None
    try:
        return compare(first, last, common=True)
    except DataError:
        return None
