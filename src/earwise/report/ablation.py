"""The arms of an ablation side by side: a table as Markdown and as HTML, a figure, and the conclusion in a sentence.

Part of `earwise.report`; text from what `earwise.apps.ablation` computed. All text of runs is escaped here.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from earwise.report.page import Section, page, tile
from earwise.report.plots import COLOURS, Interval, intervals, percent, points
from earwise.report.tables import NO_VALUE, p_value, table

ARM_HEAD = ("arm", "seeds", "right, %", "95 % interval", "silence, %", "format, %", "tokens before the answer")
TEST_HEAD = ("difference", "95 % interval", "p", "p (Holm)", "items won / lost")
SIGNIFICANT = 0.05
"""Corrected p value below which an arm is called different."""
TILES = 6
"""Arms whose score stands at the top of the page."""


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables for a terminal or a note.

    Args:
        result: What `ablation.json` holds.
    """
    lines = [f"# {result['title']}", ""]
    for comparison in result["evals"]:
        lines += [conclusion(comparison), "", _caption(comparison), ""]
        lines += [_markdown_row((*ARM_HEAD, *TEST_HEAD)), _markdown_row(["---"] * (len(ARM_HEAD) + len(TEST_HEAD)))]
        lines += [_markdown_row([*_arm_cells(row), *_test_cells(row["against"])]) for row in comparison["arms"]] + [""]
        lines += [*map(_markdown_row, domain_cells(comparison)), ""] if domain_cells(comparison) else []
    lines += [f"- {note}" for note in _notes(result)]
    return "\n".join(lines) + "\n"


def domain_cells(comparison: Mapping[str, Any]) -> list[list[str]]:
    """The arms by domain (`task` of the rows: sound, music, speech), as the papers print them; the head is followed by
    the line that Markdown wants. Empty where there is one domain only."""
    rows = [row for row in comparison["arms"] if row.get("by", {}).get("task")]
    domains = list(dict.fromkeys(domain for row in rows for domain in row["by"]["task"]))
    if not domains:
        return []
    body = [
        [
            row["arm"],
            *(_percent_cell(row["by"]["task"].get(domain)) for domain in domains),
            _percent_cell(row["accuracy"]),
        ]
        for row in rows
    ]
    return [["arm", *domains, "all"], ["---"] * (len(domains) + 2), *body]


def as_page(result: Mapping[str, Any], curves: str) -> str:
    """The page: figure, table, every run, training curves (HTML).

    Args:
        result: What `ablation.json` holds.
        curves: Training curves of the first seed (HTML).
    """
    sections, tiles = [], []
    for comparison in result["evals"]:
        sections.append(_arms_section(comparison))
        note = f"n = {comparison['n']}"
        tiles += [tile(row["arm"], percent(row["accuracy"]), note) for row in comparison["arms"][:TILES]]
        if comparison["chance"] is not None:
            tiles.append(tile("Chance", percent(comparison["chance"]), "a random option"))
    sections.append(_runs_section(result))
    sections.append(Section("Training", curves, "The first seed of every arm, over optimizer steps."))
    lead = " ".join(escape(conclusion(comparison)) for comparison in result["evals"])
    return page(result["title"], lead, tiles, sections, " ".join(_notes(result)))


def conclusion(comparison: Mapping[str, Any]) -> str:
    """The result of one comparison in a sentence, whatever it is.

    Args:
        comparison: What `apps.ablation_comparison.compare_arms` returned.
    """
    first, n = comparison["first"], comparison["n"]
    tested = [row for row in comparison["arms"] if row["against"]]
    if not tested:
        return f"No other arm has finished a seed that {first} has finished too: nothing to compare."
    different = [row for row in tested if row["against"]["p_holm"] < SIGNIFICANT]
    if not different:
        return f"On {n} items no arm can be told apart from {first}."
    listed = ", ".join(f"{row['arm']} by {points(row['against']['difference'])} points" for row in different)
    num_alike = len(tested) - len(different)
    alike = f"; {num_alike} more cannot be told apart from it" if num_alike else ""
    return f"Different from {first} on {n} items: {listed}{alike}."


def _arms_section(comparison: Mapping[str, Any]) -> Section:
    """Figure and tables of one comparison."""
    rows = comparison["arms"]
    figure = [
        Interval(row["arm"], row["accuracy"], row["low"], row["high"], number % COLOURS, _seeds(len(row["seeds"])))
        for number, row in enumerate(rows, 1)
    ]
    arms = table(ARM_HEAD, [[escape(cell) for cell in _arm_cells(row)] for row in rows], escape(_caption(comparison)))
    test_rows = [
        [escape(cell) for cell in (row["arm"], *_test_cells(row["against"]))] for row in rows if row["against"]
    ]
    tests = table((f"against {escape(comparison['first'])}", *TEST_HEAD), test_rows) if test_rows else ""
    title = f"Arms on {comparison['manifest']}"
    return Section(title, intervals(figure, None) + arms + tests, conclusion(comparison))


def _runs_section(result: Mapping[str, Any]) -> Section:
    """Every run with its steps, time, scores and the reason of its failure."""
    manifests = [escape(comparison["manifest"]) for comparison in result["evals"]]
    scores = [f"right, % ({manifest})" for manifest in manifests]
    body = [
        [
            f"{escape(run['arm'])}, seed {run['seed']}",
            f"{run['steps']} of {run['steps_asked']}",
            f"{run['train_seconds'] / 60:.1f}",
            *(_percent_cell(_score_of_run(comparison, run)) for comparison in result["evals"]),
            escape(run["failed"] or ""),
        ]
        for run in result["runs"]
    ]
    return Section("Every run", table(["run", "steps", "minutes of training", *scores, "failed"], body))


def _caption(comparison: Mapping[str, Any]) -> str:
    return (
        f"{comparison['manifest']}: {comparison['kind']} score, {comparison['n']} items; "
        f"differences against {comparison['first']}, in points."
    )


def _notes(result: Mapping[str, Any]) -> list[str]:
    """How the numbers were made, and which runs failed or were stopped early."""
    notes = [
        "Intervals and p: seeds and items are resampled together; with one seed, or where few items differ, over items "
        "alone (Wilson, exact sign test). A handful of seeds understates how much seeds differ. Under silence: "
        "the same items without their sound, first seed."
    ]
    notes += [f"{run['folder']} failed: {run['failed']}" for run in result["runs"] if run["failed"]]
    stopped = [run["folder"] for run in result["runs"] if not run["failed"] and run["steps"] < run["steps_asked"]]
    if stopped:
        notes.append(f"Stopped by the time limit before their last step: {', '.join(stopped)}.")
    return notes


def _arm_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["arm"],
        str(len(row["seeds"])),
        _percent_cell(row["accuracy"]),
        f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
        _percent_cell(row["blind"]),
        _percent_cell(row["format"]),
        NO_VALUE if row["delay"] is None else f"{row['delay']:.1f}",
    ]


def _test_cells(test: Mapping[str, Any] | None) -> list[str]:
    """Cells of an arm's test against the first arm; dashes for the first arm itself."""
    if test is None:
        return [NO_VALUE] * len(TEST_HEAD)
    mark = "*" if test["method"] == "exact" else ""
    return [
        points(test["difference"]),
        f"{points(test['low'])} to {points(test['high'])}{mark}",
        _p_cell(test["p"]),
        _p_cell(test["p_holm"]),
        f"{test['wins']} / {test['losses']}",
    ]


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "1 seed"


def _score_of_run(comparison: Mapping[str, Any], run: Mapping[str, Any]) -> float | None:
    """The score of one run; None if it is not finished."""
    row = next((row for row in comparison["arms"] if row["arm"] == run["arm"]), None)
    return None if row is None else row["by_seed"].get(str(run["seed"]))


def _percent_cell(value: float | None) -> str:
    return NO_VALUE if value is None else f"{100 * value:.1f}"


def _p_cell(value: float) -> str:
    """A p value without "p =", for a column of p values."""
    return p_value(value).replace("\u00a0", " ").removeprefix("p ").removeprefix("= ")


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
