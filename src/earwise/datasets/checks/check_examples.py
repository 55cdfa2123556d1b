"""Is a data set fit to train and measure with? Text-only bias, leaks, copies, contradictions, silence, licences.

Run after every builder, and by hand on any manifest with `earwise build check` (`checks/check_manifests.py`).
Everything is collected in one report of plain values; each problem is one line under `problems`. The rows are examined
in `checks/row_checks.py`, the audio in `checks/audio_checks.py`, the bias in `checks/text_baselines.py`;
`checks/html_report.py` writes the report as a page.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from earwise.datasets.checks.audio_checks import check_audio, no_audio_checks
from earwise.datasets.checks.contamination import BenchmarkHashes
from earwise.datasets.checks.fingerprint import Fingerprint
from earwise.datasets.checks.row_checks import RowStatistics
from earwise.datasets.checks.text_baselines import bias, is_biased, learn_blind, rate, with_options
from earwise.errors import DataError
from earwise.types import Example

MAX_LISTED = 200  # findings of each kind that are listed; the others are counted
FINDINGS = {
    "deaf": ("no clip", "; add it, or declare text alone with text_only: true"),
    "leaks": ("leak", "; keep a group in one split"),
    "copies": ("copy", "; keep the copies in one split"),
    "near_copies": ("near copy", "; keep the copies in one split"),
    "benchmark": ("benchmark", "; leave it out of training data"),
    "conflicts": ("conflict", "; correct or drop one"),
    "duplicates": ("duplicate", "; drop one"),
    "rephrased": ("near duplicate", "; drop one"),
    "silent": ("silent", "; drop it or record it again"),
    "broken": ("broken", ""),
}
"""Key of a list of findings in the report -> name of the problem and remedy."""


def check_examples(
    examples: Iterable[Example],
    *,
    read_audio: bool = True,
    seed: int = 0,
    strict: bool = False,
    benchmark_clips: Sequence[Fingerprint] = (),
    benchmark_hashes: BenchmarkHashes | None = None,
    workers: int | None = 1,
) -> dict[str, Any]:
    """Check a data set, all its splits together, so that leaks between them are found.

    Args:
        examples: Rows of one or several manifests.
        read_audio: Whether to decode the audio, to find copies and near copies, silence and unreadable files, and to
            measure levels and durations.
        seed: Seed of the division of the questions in the text-only baselines.
        strict: Whether to raise an error if there is any problem.
        benchmark_clips: Fingerprints of benchmark clips, which must not be in the data.
        benchmark_hashes: Hashes of benchmark questions and videos, which must not be in the data.
        workers: Number of processes that decode; None for one per core.
    Returns:
        Plain JSON values: `n`, `splits`, `tasks`, `bias` (baseline -> n, accuracy, chance, low, high), `bias_by_split`
        (also `blind_from_train`: the blind baseline learned from the training split), `answers` (the most frequent),
        `deaf` (rows without a clip that do not declare it), `text_only` (number of rows that do), `leaks`, `copies`,
        `near_copies`, `benchmark`, `conflicts`, `duplicates`, `rephrased`, `silent`, `broken`, `texts_across_splits`,
        `licences` (licence -> number of clips), `sounds` (statistics of the audio), `unlisted` (numbers of findings
        that are not listed), `problems`.
    Raises:
        DataError: if `strict` and there is a problem; the message states the first and the number of problems.
    """
    rows = RowStatistics()
    contaminated = []
    for number, example in enumerate(examples):
        rows.add(example, number)
        if benchmark_hashes is not None and (line := benchmark_hashes.match(example)):
            contaminated.append(line)
    report: dict[str, Any] = {
        "n": rows.rows.total(),
        "splits": dict(sorted(rows.rows.items())),
        "tasks": dict(rows.tasks.most_common()),
        **_bias(rows.bias_questions(), seed),
        "answers": rows.answers.most_common(10),
        "deaf": rows.deaf,
        "text_only": rows.num_text_only,
        "leaks": rows.leaks(),
        "conflicts": rows.conflicts,
        "duplicates": rows.duplicates,
        "rephrased": rows.rephrased,
        "texts_across_splits": rows.texts_across_splits,
        "licences": dict(Counter(licence for _, licence in rows.clips.values()).most_common()),
    }
    if read_audio:
        report |= check_audio({path: split for path, (split, _) in rows.clips.items()}, benchmark_clips, workers)
    else:
        report |= no_audio_checks()
    report["benchmark"] = contaminated + report["benchmark"]
    unlisted = {kind: len(report[kind]) - MAX_LISTED for kind in FINDINGS if len(report[kind]) > MAX_LISTED}
    report |= {kind: report[kind][:MAX_LISTED] for kind in unlisted} | {"unlisted": unlisted}
    report["problems"] = list_problems(report)
    if strict and report["problems"]:
        raise DataError(f"{report['problems'][0]} ({len(report['problems'])} problems in all; see the report)")
    return report


def list_problems(report: Mapping[str, Any]) -> list[str]:
    """The problems of a report, one line each, with a remedy."""
    lines = []
    for split, baselines in [("all", report["bias"]), *report["bias_by_split"].items()]:
        for baseline, score in baselines.items():
            if is_biased(score):
                lines.append(
                    f"bias ({split}): without audio, the {baseline} baseline is right {score['accuracy']:.3f} of "
                    f"{score['n']:.0f}, chance is {score['chance']:.3f}; draw distractors as often as they are answers "
                    "and shuffle options"
                )
    for kind, (name, remedy) in FINDINGS.items():
        lines += [f"{name}: {line}{remedy}" for line in report[kind]]
        if unlisted := report["unlisted"].get(kind):
            lines.append(f"{name}: {unlisted:,} more of this kind are not listed")
    if unnamed := report["licences"].get("", 0):
        lines.append(f"licence: {unnamed} clips name none; fill in the field `licence`")
    return lines


def _bias(questions: Mapping[str, list[Example]], seed: int) -> dict[str, Any]:
    """Text-only baselines on all questions and on each split.

    Args:
        questions: Split -> multiple-choice questions.
        seed: Seed of the baselines.
    """
    by_split = {split: bias(members, seed) for split, members in questions.items()}
    for split in set(questions) - {"train"} if by_split.get("train") else ():
        if by_split[split]:
            scorer = learn_blind(with_options(questions["train"]))
            by_split[split]["blind_from_train"] = rate(with_options(questions[split]), scorer)
    return {
        "bias": bias([example for members in questions.values() for example in members], seed),
        "bias_by_split": by_split,
    }
