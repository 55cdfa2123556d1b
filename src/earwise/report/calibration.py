"""Whether runs know what they know: a reliability diagram, and the figures that sum it up.

Part of `earwise.report`. All text of runs is escaped here.
"""

from collections.abc import Sequence
from html import escape

from earwise.evaluation.aggregates.calibration import Calibration, calibrate
from earwise.evaluation.results import EvalRun
from earwise.evaluation.scores import is_correct
from earwise.report.plots import HEIGHT, MARGIN_BOTTOM, MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, WIDTH, percent
from earwise.report.tables import ColouredRun, run_name, table

MIN_ANSWERS = 20
"""Answers with a confidence from which a run is shown; with fewer, bins hold nothing but noise."""
NOTE = (
    "Confidence: the probability that the model gave to the answer it wrote. A dot on the diagonal is a bin in which "
    "as many answers are right as the model expects; below it the model is too sure. The area of a dot is its number "
    "of answers, lines are 95 % intervals."
)


def calibration_of(run: EvalRun, name: str) -> Calibration | None:
    """Confidence against accuracy of a run's readable answers; None if too few of them have a confidence.

    Args:
        run: The run.
        name: Name of the score that decides between right and wrong.
    """
    rows = [row for row in run.first.values() if row["scores"] is not None and row.get("confidence") is not None]
    if len(rows) < MIN_ANSWERS:
        return None
    return calibrate([row["confidence"] for row in rows], [is_correct(row, name) for row in rows])


def calibration_section(runs: Sequence[ColouredRun], name: str) -> str:
    """The diagram and the table of all runs whose answers have a confidence; empty if there are none.

    Args:
        runs: The runs.
        name: Name of the headline score.
    """
    measured = [(run, colour, result) for run, colour in runs if (result := calibration_of(run, name)) is not None]
    if not measured:
        return ""
    figures = "".join(_diagram(run.name, colour, result) for run, colour, result in measured)
    body = [
        [
            run_name(run, colour), str(result.n), percent(result.confidence), percent(result.accuracy),
            f"{100 * result.expected_error:.1f}", f"{100 * result.max_error:.1f}", f"{result.brier:.3f}",
        ]
        for run, colour, result in measured
    ]  # fmt: skip
    head = ["Run", "Answers", "Mean confidence", "Right", "ECE, points", "Largest gap, points", "Brier score"]
    caption = f"{NOTE} ECE: expected calibration error over ten bins of equal width."
    return f'<div class="plots">{figures}</div>{table(head, body, caption)}'


def _diagram(name: str, colour: int, result: Calibration) -> str:
    """The reliability diagram of one run (HTML)."""

    def across(share: float) -> float:
        return MARGIN_LEFT + share * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT)

    def down(share: float) -> float:
        return MARGIN_TOP + (1 - share) * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = f"{across(share):.1f}", f"{down(share):.1f}"
        parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{MARGIN_LEFT - 6}" y="{y}" dy="3.5" text-anchor="end">{percent(share, 0)}</text>')
        parts.append(f'<text x="{x}" y="{HEIGHT - 9}" text-anchor="middle">{100 * share:.0f}</text>')
    start, end = f'x1="{across(0):.1f}" y1="{down(0):.1f}"', f'x2="{across(1):.1f}" y2="{down(1):.1f}"'
    parts.append(f'<line class="grid" {start} {end} stroke-dasharray="4 4"/>')
    for each in result.bins:
        centre, low, high = across(each.confidence), *map(down, each.interval)
        tooltip = (
            f"confidence {each.low:.1f} to {each.high:.1f}: {each.n} answers, {percent(each.accuracy)} right at a mean "
            f"confidence of {percent(each.confidence)}"
        )
        radius = 2.5 + 7 * (each.n / result.n) ** 0.5
        parts.append(
            f'<line x1="{centre:.1f}" x2="{centre:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="var(--c{colour})"/>'
            f'<circle cx="{centre:.1f}" cy="{down(each.accuracy):.1f}" r="{radius:.1f}" fill="var(--c{colour})">'
            f"<title>{tooltip}</title></circle>"
        )
    label = f"Reliability of {name}: share right over confidence, ten bins"
    caption = f"<b>{escape(name)}</b><small>share right, over confidence in %</small><span></span>"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return f'<figure class="plot"><figcaption>{caption}</figcaption>{svg}</figure>'
