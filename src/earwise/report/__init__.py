"""Runs into one HTML file that a person reads: the result, the proof that it hears, what changed, and the clips
themselves.

Above evaluation and training, which only write files: `samples.jsonl`, `metrics.json` and the training log (one JSON
object a line, `{"step": 3, "grpo/reward": 0.41, ...}`). The order of the runs is the order in the tables; the first is
the one compared with (before), the last the one in question (after).
"""

import hashlib
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluate.results import SAMPLES, Run, read_run
from earwise.files import read_log, write_text
from earwise.report import tables
from earwise.report.cards import AUDIO_BUDGET, cards
from earwise.report.page import Section, page, tile
from earwise.report.plots import Series, curves, percent, points

RunDir = Path | Run
COLOURS = 6  # --c0 .. --c5 of the style sheet

# Title and note of the curves that a reader looks for first, in this order; other logged values follow under their
# own names.
CURVES = {
    "grpo/reward": ("Reward", "mean per completion"),
    "grpo/accuracy": ("Accuracy reward", "share of completions"),
    "grpo/format": ("Format reward", "share of completions"),
    "grpo/kl": ("KL to the reference", "nats per token"),
    "grpo/length": ("Completion length", "tokens"),
    "grpo/flat_groups": ("Groups without signal", "share with equal rewards"),
    "dpo/accuracy": ("Preference accuracy", "share of pairs with a positive margin"),
    "dpo/margin": ("Preference margin", "nats"),
    "compress/chain_tokens": ("Chain length", "tokens, as trained on"),
    "compress/delay": ("Token delay", "held-out tokens before the answer"),
    "train/loss": ("Loss", "per step"),
}
OTHER_CURVES = 12
PLAIN = {"silence": "silence", "noise": "noise", "shuffled": "the sound of another item"}


def write_report(
    out: Path,
    runs: Sequence[RunDir],
    training: Sequence[Path] = (),
    *,
    title: str = "Evaluation",
    seed: int = 0,
    audio_budget: int = AUDIO_BUDGET,
) -> Path:
    """Write a self-contained HTML report.

    Args:
        out: File to write.
        runs: Folders of finished runs (or runs read with a name of their own), before first, after last.
        training: Training logs to draw, each a curve in every figure, named by its folder.
        title: Title of the page.
        seed: Seed of the draw of sample cards.
        audio_budget: Bytes of embedded clips at most (base64).
    Returns:
        `out`.
    Raises:
        DataError: if there is no run, a run is not finished or holds no labelled item, or a log is not readable.
    """
    if not runs:
        raise DataError("a report needs at least one run; give the folder that `earwise evaluate --out` wrote")
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    for run in read:
        if run.metrics["accuracy"] is None:
            raise DataError(f"{run.path}: none of its items has a gold answer, so there is nothing to report")
    first_colour = 0 if len(read) > 1 else 1
    coloured = [(run, (first_colour + number) % COLOURS) for number, run in enumerate(read)]
    paired, kind = tables.paired_or_none(coloured), tables.kind_of(read)
    sections = [
        Section("Result", tables.headline_figure(coloured, kind) + tables.overall(coloured)),
        Section(
            "Does it hear?",
            tables.blind(coloured, kind),
            "The same questions with the sound taken away: what is left comes from the text, the rest is hearing.",
        ),
        Section(
            "Format and accuracy, apart",
            tables.format_apart(read[0], read[-1], kind) if paired is not None else "",
            "A model can gain by answering in the asked form or by knowing more answers; the two are counted apart.",
        ),
        Section(
            "By kind of question",
            tables.by_kind(coloured, kind),
            "Chance is one in the number of options; an open question has none.",
        ),
        Section(
            "Score against delay",
            tables.delay(coloured, kind),
            "What reasoning aloud costs: tokens that a listener waits for before the answer begins.",
        ),
        Section("By task, category and difficulty", tables.by_group(coloured, paired, kind)),
        Section(
            "Position habits",
            tables.positions(coloured),
            "Options are shuffled by seed: a run that prefers one place is guessing more than listening.",
        ),
        Section(
            "Training",
            training_curves(training),
            "Over optimizer steps. Thin: every logged value; thick: its mean over a tenth of the run.",
        ),
        Section("Confusions", tables.confusions([read[0], read[-1]] if len(read) > 1 else read)),
        Section("Listen", cards(coloured, kind, seed, audio_budget)),
        Section(
            "Settings and provenance",
            f'<div class="settings">{tables.provenance(coloured, [_digest(run) for run in read])}</div>',
        ),
    ]
    foot = (
        f"Written by earwise {version('earwise')}. "
        "Intervals: Wilson for accuracies; paired over items for differences, by bootstrap, exact where few differ."
    )
    write_text(out, page(title, lead(read, paired, kind), tiles(read, paired, kind), sections, foot))
    return out


def lead(runs: Sequence[Run], paired: dict[str, Any] | None, kind: str) -> str:
    """The result in a sentence or two: accuracy beside the blind control, n and interval (HTML)."""
    after = runs[-1]
    row = after.metrics["accuracy"][kind]
    text = (
        f"<b>{escape(after.name)}</b> answers <b>{percent(row['accuracy'])}</b> of {row['n']} questions right "
        f"(95 % interval {100 * row['low']:.1f}–{100 * row['high']:.1f})"
    )
    if paired is not None:
        gain = paired[kind]
        text += (
            f", <b>{points(gain['difference'])} points</b> against <b>{escape(runs[0].name)}</b> "
            f"({percent(gain['accuracy_a'])}; interval {points(gain['low'])} to {points(gain['high'])}, "
            f"{tables.p_value(gain['p'])})"
        )
    text += "."
    controls = tables.controls_of(after)
    for name, control in list(controls.items())[:1]:
        gain = control["hearing_gain"][kind]
        verdict = "" if gain["low"] > 0 else " The hearing gain is not distinguishable from zero."
        without = percent(control["accuracy"][kind]["accuracy"])
        text += f" With {PLAIN[name]} in place of the sound: <b>{without}</b>.{verdict}"
    return text if controls else text + " No blind control was run."


def tiles(runs: Sequence[Run], paired: dict[str, Any] | None, kind: str) -> list[str]:
    """The numbers under the sentence."""
    metrics = runs[-1].metrics
    row = metrics["accuracy"][kind]
    found = [tile(runs[-1].name, percent(row["accuracy"]), f"accuracy, n = {row['n']}")]
    if paired is not None:
        gain = paired[kind]
        found.append(
            tile(
                runs[0].name,
                percent(gain["accuracy_a"]),
                f"{gain['wins']} gained, {gain['losses']} lost",
            )
        )
    for name, control in tables.controls_of(runs[-1]).items():
        hearing = control["hearing_gain"][kind]
        found.append(
            tile(
                f"Blind: {name}",
                percent(control["accuracy"][kind]["accuracy"]),
                f"hearing gain {points(hearing['difference'])}",
            )
        )
    if metrics["chance"] is not None:
        covers = metrics.get("chance_n", metrics["n"])
        of = "a random option" if covers == metrics["n"] else f"of the {covers} of {metrics['n']} with options"
        found.append(tile("Chance", percent(metrics["chance"]), of))
    unread = metrics["unparsed"]["count"] + metrics["ambiguous"]["count"] + metrics["error"]["count"]
    found.append(tile("Not scorable", percent(unread / metrics["unparsed"]["n"]), "counted as wrong"))
    return found


def training_curves(logs: Sequence[Path]) -> str:
    """Figures of everything that the logs hold over steps, the known ones first; empty without logs.

    Raises:
        DataError: if a log is missing or holds no rows with a step.
    """
    if not logs:
        return ""
    curves_of: dict[str, list[Series]] = {}
    names = [log.parent.name if len({log.parent.name for log in logs}) == len(logs) else str(log) for log in logs]
    for number, (name, log) in enumerate(zip(names, logs, strict=True)):
        if not log.is_file():
            raise DataError(f"{log}: no such training log; give the JSONL file that `earwise train` wrote")
        rows = [row for row in read_log(log) if isinstance(row.get("step"), int)]
        if not rows:
            raise DataError(f"{log}: holds no row with a step; give the JSONL file that `earwise train` wrote")
        for key in dict.fromkeys(key for row in rows for key in row):
            dots = tuple((float(row["step"]), float(row[key])) for row in rows if _is_number(row.get(key)))
            if key != "step" and dots:
                curves_of.setdefault(key, []).append(Series(name, dots, (number + 1) % COLOURS))
    known = [key for key in CURVES if key in curves_of]
    other = sorted(key for key in curves_of if key not in CURVES and "/" in key)
    first = "".join(curves(curves_of[key], *CURVES[key]) for key in known)
    rest = "".join(curves(curves_of[key], key) for key in other[:OTHER_CURVES])
    legend = "".join(
        f'<span><span class="key" style="--c:var(--c{(k + 1) % COLOURS})"></span>{escape(name)}</span>'
        for k, name in enumerate(names)
    )
    more = (
        f"<details><summary>{min(len(other), OTHER_CURVES)} more curves</summary>"
        f'<div class="plots">{rest}</div></details>'
        if rest and first
        else ""
    )
    return (
        f'<div class="legend">{legend}</div>' if len(logs) > 1 else ""
    ) + f'<div class="plots">{first or rest}</div>{more}'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _digest(run: Run) -> str:
    return hashlib.sha256((run.path / SAMPLES).read_bytes()).hexdigest()
