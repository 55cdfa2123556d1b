"""Arms of an ablation side by side: one table as Markdown and as HTML, with a figure, and the answer in a sentence.

Part of `earwise.report`; what `earwise.apps.ablation` has computed in, text out. All text of runs is escaped here.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from earwise.report.page import Section, page, tile
from earwise.report.plots import COLOURS, Interval, intervals, percent, points
from earwise.report.tables import p_value, table

HEAD = ("arm", "seeds", "right, %", "95 % interval", "silence, %", "format, %", "tokens before the answer")
TESTED = ("difference", "95 % interval", "p", "p (Holm)", "items won / lost")


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables for a terminal or a note."""
    lines = [f"# {result['title']}", ""]
    for one in result["evals"]:
        lines += [f"{conclusion(one)}", "", f"{_intro(one)}", ""]
        lines += [_line((*HEAD, *TESTED)), _line(["---"] * (len(HEAD) + len(TESTED)))]
        lines += [_line([*_cells(row), *_tested(row["against"])]) for row in one["arms"]] + [""]
    lines += [f"- {note}" for note in _notes(result)]
    return "\n".join(lines) + "\n"


def as_page(result: Mapping[str, Any], curves: str) -> str:
    """The page: figure, table, every run, curves of the first seed (HTML)."""
    sections, tiles = [], []
    for one in result["evals"]:
        figure = [
            Interval(row["arm"], row["accuracy"], row["low"], row["high"], number % COLOURS, _seeds(len(row["seeds"])))
            for number, row in enumerate(one["arms"], 1)
        ]
        body = [[escape(cell) for cell in _cells(row)] for row in one["arms"]]
        arms = table(HEAD, body, escape(_intro(one)))
        body = [
            [escape(cell) for cell in (row["arm"], *_tested(row["against"]))] for row in one["arms"] if row["against"]
        ]
        tests = table((f"against {escape(one['first'])}", *TESTED), body) if body else ""
        sections.append(Section(f"Arms on {one['manifest']}", intervals(figure, None) + arms + tests, conclusion(one)))
        tiles += [tile(row["arm"], percent(row["accuracy"]), f"n = {one['n']}") for row in one["arms"][:6]]
        if one["chance"] is not None:
            tiles.append(tile("Chance", percent(one["chance"]), "a random option"))
    each = [
        [f"{escape(run['arm'])}, seed {run['seed']}", f"{run['steps']} of {run['steps_asked']}"]
        + [f"{run['train_seconds'] / 60:.1f}"]
        + [_share(_of_seed(one, run)) for one in result["evals"]]
        + [escape(run["failed"] or "")]
        for run in result["runs"]
    ]
    head = [
        "run",
        "steps",
        "minutes of training",
        *(f"right, % ({escape(one['manifest'])})" for one in result["evals"]),
    ]
    sections.append(Section("Every run", table([*head, "failed"], each)))
    sections.append(Section("Training", curves, "The first seed of every arm, over optimizer steps."))
    lead = " ".join(escape(conclusion(one)) for one in result["evals"])
    return page(result["title"], lead, tiles, sections, " ".join(_notes(result)))


def conclusion(one: Mapping[str, Any]) -> str:
    """The answer in a sentence, whatever it is."""
    tested = [row for row in one["arms"] if row["against"]]
    if not tested:
        return f"No other arm has finished a seed that {one['first']} has finished too: nothing to compare."
    sure = [row for row in tested if row["against"]["p_holm"] < 0.05]
    if not sure:
        return f"On {one['n']} items no arm can be told apart from {one['first']}."
    said = ", ".join(f"{row['arm']} by {points(row['against']['difference'])} points" for row in sure)
    rest = len(tested) - len(sure)
    more = f"; {rest} more cannot be told apart from it" if rest else ""
    return f"Different from {one['first']} on {one['n']} items: {said}{more}."


def _intro(one: Mapping[str, Any]) -> str:
    return f"{one['manifest']}: {one['kind']} score, {one['n']} items; differences against {one['first']}, in points."


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = [
        "Intervals and p: seeds and items resampled together; with one seed, or where few items differ, over items "
        "alone (Wilson, exact sign test). A handful of seeds understates how much seeds differ. Under silence: "
        "the same items without their sound, first seed."
    ]
    notes += [f"{run['folder']} failed: {run['failed']}" for run in result["runs"] if run["failed"]]
    short = [run for run in result["runs"] if not run["failed"] and run["steps"] < run["steps_asked"]]
    if short:
        notes.append(f"Stopped by the clock before their last step: {', '.join(run['folder'] for run in short)}.")
    return notes


def _cells(row: Mapping[str, Any]) -> list[str]:
    shares = [_share(row["accuracy"]), f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"]
    delay = "–" if row["delay"] is None else f"{row['delay']:.1f}"
    return [row["arm"], str(len(row["seeds"])), *shares, _share(row["blind"]), _share(row["format"]), delay]


def _tested(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["–"] * len(TESTED)
    mark = "*" if row["method"] == "exact" else ""
    interval = f"{points(row['low'])} to {points(row['high'])}{mark}"
    return [
        points(row["difference"]),
        interval,
        _p(row["p"]),
        _p(row["p_holm"]),
        f"{row['wins']} / {row['losses']}",
    ]


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "1 seed"


def _of_seed(one: Mapping[str, Any], run: Mapping[str, Any]) -> float | None:
    return next((row["by_seed"].get(str(run["seed"])) for row in one["arms"] if row["arm"] == run["arm"]), None)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _p(value: float) -> str:
    """A p value in a column of them."""
    return p_value(value).replace("\u00a0", " ").removeprefix("p ").removeprefix("= ")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
