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
from earwise.files import write_text
from earwise.report import tables
from earwise.report.cards import AUDIO_BUDGET, cards
from earwise.report.page import Section, page, tile
from earwise.report.plots import COLOURS, percent, points
from earwise.report.training import lead as training_lead
from earwise.report.training import read_logs, rollout_cards, settings
from earwise.report.training import tiles as training_tiles
from earwise.report.training import training_curves as training_curves

RunDir = Path | Run
TRAINING_NOTE = "Over optimizer steps. Thin: every logged value; thick: its mean over a tenth of the run."
SAMPLED_NOTE = "What the policy said while it learned, what it was asked, and what that earned."
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
        training: Training logs to draw, each a curve in every figure, named by its folder; of the last one samples
            are shown. Without runs, the page is about them.
        title: Title of the page.
        seed: Seed of the draw of sample cards.
        audio_budget: Bytes of embedded clips at most (base64).
    Returns:
        `out`.
    Raises:
        DataError: if there is neither run nor log, a run is not finished or holds no labelled item, or a log is not
            readable.
    """
    if not runs and not training:
        raise DataError("a report needs at least one run; give the folder that `earwise evaluate --out` wrote")
    logs = read_logs(training)
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    for run in read:
        if run.metrics["accuracy"] is None:
            raise DataError(f"{run.path}: none of its items has a gold answer, so there is nothing to report")
    sampled_budget = audio_budget // 3 if logs else 0
    trained = [
        Section("Training", training_curves(training), TRAINING_NOTE),
        Section("Sampled on the way", rollout_cards(logs[-1], sampled_budget) if logs else "", SAMPLED_NOTE),
    ]
    made_by = f"Written by earwise {version('earwise')}. "
    if not read:
        trained.append(Section("Settings and provenance", settings(logs[-1])))
        sentence = " ".join(training_lead(log) for log in logs)
        write_text(out, page(title, sentence, training_tiles(logs[-1]), trained, made_by))
        return out
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
        *trained,
        Section("Confusions", tables.confusions([read[0], read[-1]] if len(read) > 1 else read)),
        Section("Listen", cards(coloured, kind, seed, audio_budget - sampled_budget)),
        Section(
            "Settings and provenance",
            f'<div class="settings">{tables.provenance(coloured, [_digest(run) for run in read])}</div>',
        ),
    ]
    foot = "Intervals: Wilson for accuracies; paired over items for differences, by bootstrap, exact where few differ."
    write_text(out, page(title, lead(read, paired, kind), tiles(read, paired, kind), sections, made_by + foot))
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


def _digest(run: Run) -> str:
    return hashlib.sha256((run.path / SAMPLES).read_bytes()).hexdigest()
