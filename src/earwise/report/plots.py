"""Figures without a plotting library: intervals and heat maps as HTML (they reflow in a narrow window), curves as SVG.

Part of `earwise.report`. Every colour is a CSS variable of the page, so that figures follow its light and dark themes.
Text is escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 320, 190  # user units of one figure; the page scales it to its column
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 44, 10, 12, 26  # margins around the curves, in user units
COLOURS = 6  # number of colours: --c0 .. --c5 of the style sheet
SMOOTH_FROM = 24  # number of points from which a smoothed line is drawn over the raw one


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of an interval figure; values in [0, 1]."""

    label: str
    value: float
    low: float | None
    """Lower end of the interval; None for a figure without an interval, which is drawn as a diamond."""
    high: float | None
    """Upper end of the interval; None like `low`."""
    colour: int
    """Number of the line's colour; -1 draws a hollow dot (blind controls)."""
    note: str = ""
    """Second line of the label."""


@dataclass(frozen=True, slots=True)
class Series:
    """One curve."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Pairs (step, value)."""
    colour: int
    """Number of the curve's colour."""


def percent(value: float, digits: int = 1) -> str:
    """A share as text.

    >>> percent(0.617)
    '61.7 %'
    """
    return f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """A difference of shares as signed percentage points.

    >>> points(-0.05), points(0.267)
    ('−5.0', '+26.7')
    """
    return f"{'−' if value < 0 else '+'}{abs(100 * value):.1f}"


def intervals(rows: Sequence[Interval], chance: float | None) -> str:
    """Dots with their 95 % intervals on a common scale from 0 to 100 %, or to 200, 400, ... where a value is larger, as
    error rates and CIDEr-D can be.

    Args:
        rows: The lines of the figure.
        chance: Chance level in [0, 1], drawn as a dashed line; None: no line.
    """
    largest = max((value for row in rows for value in (row.value, row.high) if value is not None), default=1.0)
    top = 2.0 ** max(0, math.ceil(math.log2(max(largest, 1e-9)) - 1e-9))
    lines = []
    for row in rows:
        low, high = (row.value if end is None else end for end in (row.low, row.high))
        ends = {"low": low, "high": high, "value": row.value}
        style = ";".join(f"--{name}:{100 * min(1.0, max(0.0, value / top)):.2f}%" for name, value in ends.items())
        kind = " published" if row.low is None else " hollow" if row.colour < 0 else ""
        interval = "published" if row.low is None else f"{100 * low:.1f}–{100 * high:.1f}"
        mark = "" if chance is None else f'<i class="chance" style="left:{100 * chance / top:.2f}%"></i>'
        lines.append(
            f'<div class="irow"><div class="ilabel">{escape(row.label)}<small>{escape(row.note)}</small></div>'
            f'<div class="itrack{kind}" style="{style};--c:var(--c{max(row.colour, 0)})">{mark}'
            f'<i class="iline"></i><i class="idot"></i></div><div class="ivalue">{percent(row.value)}'
            f"<small>{interval}</small></div></div>"
        )
    axis = "".join(
        f'<span style="left:{tick}%">{top * tick:.0f}{" %" if tick == 100 else ""}</span>'
        for tick in (0, 25, 50, 75, 100)
    )
    foot = (
        "" if chance is None else f'<p class="note">Dashed line: chance, {percent(chance)}. Bars: 95 % intervals.</p>'
    )
    return f'<div class="intervals">{"".join(lines)}<div class="irow"><div class="iaxis">{axis}</div></div></div>{foot}'


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values, about `count` of them, that cover `low` to `high`.

    >>> nice_ticks(0.0, 1.0)
    [0.0, 0.5, 1.0]
    >>> nice_ticks(3, 3)
    [2.0, 2.5, 3.0, 3.5, 4.0]
    """
    if high <= low:
        low, high = low - 1, high + 1
    min_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= min_step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def curves(series: Sequence[Series], title: str, note: str = "") -> str:
    """A figure of curves over optimizer steps; a long curve gets a smoothed line over the raw one.

    Args:
        series: The curves, at least one, each with at least one point.
        title: Title of the figure.
        note: Unit or explanation beside the title.
    """
    xs = [x for curve in series for x, _ in curve.points]
    ys = [y for curve in series for _, y in curve.points]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), nice_ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def position(x: float, y: float) -> str:
        across = MARGIN_LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT)
        down = HEIGHT - MARGIN_BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)
        return f"{across:.1f},{down:.1f}"

    def line(dots: Sequence[tuple[float, float]], colour: int, css_class: str) -> str:
        if len(dots) == 1:
            x, y = position(*dots[0]).split(",")
            return f'<circle cx="{x}" cy="{y}" r="3" fill="var(--c{colour})"/>'
        path = " ".join(position(x, y) for x, y in dots)
        return f'<polyline class="{css_class}" points="{path}" stroke="var(--c{colour})"/>'

    parts = []
    for tick in y_ticks:
        x, y = position(x_low, tick).split(",")
        parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{MARGIN_LEFT - 6}" y="{y}" dy="3.5" text-anchor="end">{_short(tick)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high and tick == int(tick):
            x = position(tick, y_low).split(",")[0]
            parts.append(f'<text x="{x}" y="{HEIGHT - 9}" text-anchor="middle">{_short(tick)}</text>')
    for curve in series:
        smooth = len(curve.points) >= SMOOTH_FROM
        parts.append(line(curve.points, curve.colour, "raw" if smooth else "curve"))
        if smooth:
            parts.append(line(smoothed(curve.points), curve.colour, "curve"))
    ends = (series[0].points[0][1], series[0].points[-1][1]) if len(series) == 1 else ()
    change = " → ".join(map(_short, ends))
    caption = f"<b>{escape(title)}</b><small>{escape(note)}</small><span>{change}</span>"
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over steps">{"".join(parts)}</svg>'
    )
    return f'<figure class="plot"><figcaption>{caption}</figcaption>{svg}</figure>'


@dataclass(frozen=True, slots=True)
class CostPoint:
    """One run in a figure of a score against its cost."""

    label: str
    cost: float
    """Cost of the run, at least 0, for example mean tokens before the answer."""
    value: float
    """Score in [0, 1]."""
    low: float
    """Lower end of the score's 95 % interval."""
    high: float
    """Upper end of the score's 95 % interval."""
    colour: int
    """Number of the run's colour."""


def against_cost(runs: Sequence[CostPoint], title: str, note: str) -> str:
    """A figure of scores (upwards, with 95 % intervals) against a cost (to the right, from 0), one point per run."""
    x_ticks = nice_ticks(0.0, max(run.cost for run in runs) or 1.0)

    def across(x: float) -> float:
        return MARGIN_LEFT + x / x_ticks[-1] * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT)

    def down(share: float) -> float:
        return MARGIN_TOP + (1 - share) * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = f"{down(share):.1f}"
        parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{MARGIN_LEFT - 6}" y="{y}" dy="3.5" text-anchor="end">{percent(share, 0)}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{across(tick):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{_short(tick)}</text>')
    for run in runs:
        x, stroke = f"{across(run.cost):.1f}", f"var(--c{run.colour})"
        tooltip = f"{escape(run.label)}: {percent(run.value)} at {run.cost:.1f}"
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{down(run.low):.1f}" y2="{down(run.high):.1f}" stroke="{stroke}"/>'
            f'<circle cx="{x}" cy="{down(run.value):.1f}" r="4" fill="{stroke}"><title>{tooltip}</title></circle>'
        )
    caption = f"<b>{escape(title)}</b><small>{escape(note)}</small><span></span>"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<figure class="plot"><figcaption>{caption}</figcaption>{svg}</figure>'


def smoothed(dots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over a centred window of a tenth of the curve; at the ends the window is cut off."""
    half = max(1, len(dots) // 20)
    means = []
    for place, (x, _) in enumerate(dots):
        window = dots[max(0, place - half) : place + half + 1]
        means.append((x, sum(y for _, y in window) / len(window)))
    return means


def heat_map(counts: Sequence[Sequence[int]], rows: Sequence[str], columns: Sequence[str]) -> str:
    """A confusion matrix: the share of the row as shade, the count as text, right answers in another colour.

    Args:
        counts: Counts by row and column.
        rows: Names of the rows (right answers).
        columns: Names of the columns (given answers).
    """
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns)
    body = []
    for row, (name, line) in enumerate(zip(rows, counts, strict=True)):
        total = sum(line)
        cells = []
        for column, count in enumerate(line):
            share = count / total if total else 0.0
            is_right = rows[row] == columns[column]
            shade = f"--s:{round(100 * share)}%;--h:var(--{'good' if is_right else 'bad'})"
            strong = " strong" if share > 0.55 else ""
            cells.append(f'<td class="heat{strong}" style="{shade}" title="{count} of {total}">{count or ""}</td>')
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}<td class="total">{total}</td></tr>')
    top = f'<tr><td></td>{head}<th scope="col"><span>n</span></th></tr>'
    table = f'<table class="confusion"><thead>{top}</thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _short(value: float) -> str:
    """A number in a few characters.

    >>> _short(0.5), _short(1200.0), _short(0.00012), _short(-3.0)
    ('0.5', '1200', '1.2e-04', '-3')
    """
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
