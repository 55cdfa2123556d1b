"""Runs into one HTML file for a reader: the result, the blind controls, what changed, and the clips themselves.

Above evaluation and training, which only write files: `samples.jsonl`, `metrics.json` and the training log (one JSON
object per line, `{"step": 3, "grpo/reward": 0.41, ...}`). The order of the runs is the order in the tables; the first
is the one to compare with (before), the last the one in question (after).
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.results import SAMPLES, EvalRun, read_run
from earwise.evaluation.scores import shared_headline
from earwise.files import write_text
from earwise.report import answer_tables, highlights, result_tables, training
from earwise.report.calibration import calibration_section
from earwise.report.page import Section, page
from earwise.report.plots import COLOURS
from earwise.report.published_figures import PublishedFigure
from earwise.report.samples.section import AUDIO_BUDGET, sample_section
from earwise.report.tables import ColouredRun
from earwise.report.training import TrainingLog

RunSource = Path | EvalRun
"""The folder of a finished run, or a run that was read already."""
TRAINING_NOTE = "Over optimizer steps. Thin: every logged value; thick: its mean over a tenth of the run."
SAMPLED_NOTE = "Prompts and completions sampled during training, with the reward of each completion."
SAMPLES_NOTE = (
    "Every item: arrows move through the list, Enter opens, Escape closes, / searches. Each sample has an address of "
    "its own."
)
INTERVALS_NOTE = (
    "Intervals: Wilson for accuracies; paired over items for differences, by bootstrap, exact where few differ; "
    "clustered by clip where questions share clips."
)


def write_report(
    out: Path,
    runs: Sequence[RunSource],
    training_logs: Sequence[Path] = (),
    *,
    title: str = "Evaluation",
    seed: int = 0,
    audio_budget: int = AUDIO_BUDGET,
    published: Sequence[PublishedFigure] = (),
) -> Path:
    """Write a self-contained HTML report.

    Args:
        out: File to write.
        runs: Folders of finished runs (or runs read with a name of their own), before first, after last.
        training_logs: Training logs to draw, each a curve in every figure, named by its folder; samples of the last one
            are shown. Without runs, the page is about them.
        title: Title of the page.
        seed: Seed of the order in which clips are embedded.
        audio_budget: Number of bytes that embedded clips may take (base64).
        published: Published figures to show beside the headline score.
    Returns:
        `out`.
    Raises:
        DataError: if there is neither run nor log, a run is not finished, a run without gold answers stands beside one
            with them, or a log cannot be read.
    """
    if not runs and not training_logs:
        raise DataError("a report needs at least one run; give the folder that `earwise evaluate --out` wrote")
    logs = training.read_logs(training_logs)
    eval_runs = [run if isinstance(run, EvalRun) else read_run(run) for run in runs]
    unlabelled = [run for run in eval_runs if run.metrics["accuracy"] is None]
    if unlabelled and len(unlabelled) < len(eval_runs):
        raise DataError(f"{unlabelled[0].path}: none of its items has a gold answer; give it a page of its own")
    foot = f"Written by earwise {version('earwise')}. "
    sampled_budget = audio_budget // 3 if logs else 0
    training_sections = _training_sections(training_logs, logs, sampled_budget)
    if not eval_runs:
        sections = [*training_sections, Section("Settings and provenance", training.settings(logs[-1]))]
        text = page(title, " ".join(map(training.lead, logs)), training.tiles(logs[-1]), sections, foot)
    else:
        name = shared_headline(eval_runs)
        first_colour = 0 if len(eval_runs) > 1 else 1
        coloured = [(run, (first_colour + number) % COLOURS) for number, run in enumerate(eval_runs)]
        paired = result_tables.paired_or_none(coloured)
        clip_budget = audio_budget - sampled_budget
        samples, sample_data = sample_section(coloured, name, seed, out.parent, clip_budget)
        results = [] if unlabelled else _result_sections(coloured, paired, name, published)
        sections = [
            *results,
            *training_sections,
            Section("Confusions", answer_tables.confusions(_ends(eval_runs))),
            Section("Samples", samples, SAMPLES_NOTE, sample_data),
            _provenance_section(coloured),
        ]
        tiles = [] if unlabelled else highlights.tiles(eval_runs, paired, name)
        text = page(title, highlights.lead(eval_runs, paired, name), tiles, sections, foot + INTERVALS_NOTE)
    write_text(out, text)
    return out


def _training_sections(paths: Sequence[Path], logs: Sequence[TrainingLog], audio_budget: int) -> list[Section]:
    """Curves of all logs and samples of the last one; empty sections without logs."""
    return [
        Section("Training", training.training_curves(paths), TRAINING_NOTE),
        Section("Sampled on the way", training.rollout_cards(logs[-1], audio_budget) if logs else "", SAMPLED_NOTE),
    ]


def _result_sections(
    runs: Sequence[ColouredRun], paired: dict[str, Any] | None, name: str, published: Sequence[PublishedFigure]
) -> list[Section]:
    """Scores, controls and their breakdown.

    Args:
        runs: The runs.
        paired: The comparison of the last run with the first; None: there is none.
        name: Name of the headline score.
        published: Published figures.
    """
    return [
        Section(
            "Result",
            result_tables.headline_figure(runs, name, published)
            + result_tables.caveats(runs, name)
            + result_tables.overall(runs)
            + result_tables.outcome_counts(runs, name),
        ),
        Section(
            "Does it hear?",
            result_tables.blind_table(runs, name),
            "The same questions with the sound taken away: the blind score comes from the text, the rest is hearing.",
        ),
        Section(
            "Format and accuracy, apart",
            result_tables.format_apart(runs[0][0], runs[-1][0], name) if paired is not None else "",
            "A model can gain by answering in the requested form or by knowing more answers; the two are counted "
            "apart.",
        ),
        Section(
            "By kind of question",
            result_tables.by_options(runs, name),
            "Chance is one in the number of options; an open question has no chance level.",
        ),
        Section(
            "Score against delay",
            result_tables.delay_table(runs, name),
            "The cost of reasoning aloud: tokens that a listener waits for before the answer begins.",
        ),
        Section("By task, category, difficulty and language", result_tables.by_group(runs, paired, name)),
        Section(
            "Position habits",
            answer_tables.positions(runs),
            "Options are shuffled by seed: a run that prefers one position guesses more than it listens.",
        ),
        Section(
            "Orders of the options",
            answer_tables.orders(runs, name),
            "The same items with their options in other orders: a run that hears gives the same answer in all of them.",
        ),
        Section(
            "Calibration",
            calibration_section(runs, name),
            "Does the run know what it knows? Its confidence, beside how often it is right.",
        ),
    ]


def _provenance_section(runs: Sequence[ColouredRun]) -> Section:
    """Everything that produced the numbers."""
    hashes = [hashlib.sha256((run.path / SAMPLES).read_bytes()).hexdigest() for run, _ in runs]
    return Section("Settings and provenance", f'<div class="settings">{answer_tables.provenance(runs, hashes)}</div>')


def _ends(runs: Sequence[EvalRun]) -> list[EvalRun]:
    """The first and the last run, or the only one."""
    return [runs[0], runs[-1]] if len(runs) > 1 else list(runs)
