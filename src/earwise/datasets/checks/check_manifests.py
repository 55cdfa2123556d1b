"""Checks manifests: `earwise build check`, and the check that follows every builder.

Reads the manifests and the benchmarks, runs `checks/check_examples.py`, and writes the report, fingerprints and hashes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.data.sources.row_readers import json_rows
from earwise.datasets.checks import blind_model, contamination, fingerprint, html_report
from earwise.datasets.checks.audio_checks import fingerprint_clips
from earwise.datasets.checks.check_examples import check_examples, list_problems
from earwise.datasets.checks.contamination import BenchmarkHashes
from earwise.datasets.checks.fingerprint import Fingerprint
from earwise.engine.base import Engine
from earwise.errors import DataError
from earwise.types import Example

SMALL_BYTES = 300_000  # manifests of about 500 rows in all; starting processes for fewer takes longer than it saves
MAX_BAD_ROWS = 50  # rows that cannot be used are listed up to this number; the others are counted
MANY_ROWS = 20_000  # after a builder, more rows are checked without their audio, which would take minutes

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Options of a check of manifests."""

    read_audio: bool = True
    """Whether to decode the audio."""
    benchmarks: tuple[Path, ...] = ()
    """Files whose content must not be in the data: question files of benchmarks, manifests or fingerprints."""
    page: Path | None = None
    """HTML page to write, with the report as JSON beside it."""
    fingerprints_out: Path | None = None
    """File to write with the fingerprints of all clips, for use as a benchmark by others."""
    hashes_out: Path | None = None
    """File to write with the hashes of all questions and videos, for use as a benchmark by others."""
    filtered_out: Path | None = None
    """Manifest to write with the rows that the blind model does not answer."""
    workers: int | None = None
    """Number of processes that decode; None for one per core, or one if the manifests are small."""
    seed: int = 0
    """Seed of the text-only baselines and of the rows shown on the page."""


@dataclass(frozen=True, slots=True)
class BlindModel:
    """A model that is asked every question with silence in place of the audio."""

    name: str
    open: Callable[[], Engine]
    """Function that loads the model; called after the other checks."""


def check_manifests(
    paths: Sequence[Path],
    options: CheckOptions | None = None,
    *,
    title: str = "",
    blind: BlindModel | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Check manifests together, and write the files that the options name.

    Args:
        paths: Manifests, usually all splits of a data set.
        options: What to check and to write; None for the defaults.
        title: Heading of the page; by default the names of the files.
        blind: Model to ask without audio; None for the text-only baselines alone.
        notify: Callback that receives a line for each file that is written, and progress messages.
    Returns:
        The report of `check_examples`, with the score of the blind model under `bias`. Rows that cannot be used are
        counted under `bad_rows`, the first of them are the first `problems`, and all other checks go on without them.
    Raises:
        DataError: if a manifest is empty or cannot be read, or a benchmark cannot be read.
    """
    options = options or CheckOptions()
    bad_rows = BadRows()
    benchmarks = [_read_benchmark(path, options.workers) for path in options.benchmarks]
    workers = _choose_workers(paths, options.workers)
    report = check_examples(
        _rows(paths, bad_rows, check_files=options.read_audio, notify=notify),
        read_audio=options.read_audio,
        seed=options.seed,
        benchmark_clips=[clip for fingerprints, _ in benchmarks for clip in fingerprints],
        benchmark_hashes=contamination.merge(hashes for _, hashes in benchmarks),
        workers=workers,
    )
    if blind is not None:
        _ask_blind_model(report, list(_rows(paths, BadRows())), blind, options.filtered_out, notify)
    report["bad_rows"] = bad_rows.count
    report["problems"] = [*bad_rows.problems(), *report["problems"]]
    if options.fingerprints_out is not None:
        clips = (path for example in _rows(paths, BadRows()) for path in example.audio_paths)
        count = fingerprint.write(options.fingerprints_out, fingerprint_clips(clips, workers))
        notify(f"{options.fingerprints_out}: {count} fingerprints")
    if options.hashes_out is not None:
        count = contamination.write(options.hashes_out, contamination.merge(map(contamination.read, paths)))
        notify(f"{options.hashes_out}: {count} hashes")
    if options.page is not None:
        title = title or ", ".join(path.name for path in paths)
        html_report.write(options.page, report, title, _rows(paths, BadRows()), options.seed)
    return report


def check_built_manifests(
    paths: Sequence[Path],
    *,
    read_audio: bool = True,
    workers: int | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Check the manifests that a builder wrote, write a page beside the first, and report the problems.

    Args:
        paths: Manifests; the page of `a/b.jsonl` is `a/b.checks.html`.
        read_audio: Whether to decode the audio, unless there are more than `MANY_ROWS` rows; False if the audio files
            need not exist.
        workers: Number of processes that decode; None for one per core.
        notify: Callback that receives the number of problems and the first five.
    Returns:
        The report of `check_examples`.
    """
    if read_audio and (count := sum(1 for path in paths for _ in path.open("rb"))) > MANY_ROWS:
        read_audio = False
        notify(f"{count} rows: checked without their audio; `earwise build check` also checks the audio")
    page = paths[0].with_suffix(".checks.html")
    report = check_examples(_rows(paths), read_audio=read_audio, workers=_choose_workers(paths, workers))
    html_report.write(page, report, ", ".join(path.name for path in paths), _rows(paths))
    problems = report["problems"]
    notify(f"checks: {len(problems)} problems, {page}" if problems else f"checks: no problems, {page}")
    for line in problems[:5]:
        notify(f"  {line}")
    return report


class BadRows:
    """Counts the rows that cannot be used, and keeps the messages about the first `MAX_BAD_ROWS`."""

    def __init__(self) -> None:
        self.count = 0
        """Number of rows that cannot be used."""
        self._first: list[str] = []

    def __call__(self, message: str) -> None:
        """Count a row."""
        self.count += 1
        if len(self._first) < MAX_BAD_ROWS:
            self._first.append(message)

    def problems(self) -> list[str]:
        """The messages, and the number of rows that are not listed."""
        more = self.count - len(self._first)
        return [*self._first, *([f"{more} more rows cannot be used"] if more else [])]


def _rows(
    paths: Sequence[Path], bad_rows: BadRows | None = None, check_files: bool = False,
    notify: Notify = lambda _: None,
) -> Iterator[Example]:  # fmt: skip
    """The rows of all manifests, one manifest after the other; an empty manifest raises DataError.

    Rows without a clip are let through, since the report lists them. Rows that cannot be used are left out where
    `bad_rows` counts them, and raise DataError where nothing does.
    """
    for path in paths:
        count = 0
        for example in manifest.iterate(
            path, check_files=check_files, require_audio=False, notify=notify, on_bad=bad_rows
        ):
            count += 1
            yield example
        if not count:
            if bad_rows is not None and bad_rows.count:
                raise DataError(f"{path}: no row can be used; {bad_rows.problems()[0].removeprefix(f'{path}:')}")
            raise DataError(f"{path}: holds no rows; write at least one")


def _choose_workers(paths: Sequence[Path], workers: int | None) -> int | None:
    """One process for small manifests, because processes take a second to start; else the number that was asked for."""
    is_small = sum(path.stat().st_size for path in paths if path.is_file()) < SMALL_BYTES
    return 1 if workers is None and is_small else workers


def _read_benchmark(path: Path, workers: int | None) -> tuple[list[Fingerprint], BenchmarkHashes]:
    """Fingerprints of a benchmark's clips, if its audio or a file of fingerprints is available, and its hashes."""
    if fingerprint.is_fingerprint_file(path):
        return fingerprint.read(path), BenchmarkHashes()
    hashes = contamination.read(path)
    if not _is_manifest(path):
        return [], hashes
    clips = (clip for example in manifest.iterate(path, require_audio=False) for clip in example.audio_paths)
    return fingerprint_clips(clips, workers), hashes


def _is_manifest(path: Path) -> bool:
    """True if the first row of a file has messages."""
    return any("messages" in row for _, row in islice(json_rows(path, (), lambda _: None), 1))


def _ask_blind_model(
    report: dict[str, Any], examples: Sequence[Example], blind: BlindModel, filtered_out: Path | None, notify: Notify
) -> None:
    """Add the score of a blind model to the report, and write the rows that it does not answer to `filtered_out`."""
    accuracies = blind_model.blind_accuracy(examples, blind.open(), notify=notify)
    report["bias"][f"model_{blind.name}"] = blind_model.blind_score(examples, accuracies)
    report["problems"] = list_problems(report)
    if filtered_out is not None:
        count = manifest.write(filtered_out, blind_model.requiring_audio(examples, accuracies))
        notify(f"{filtered_out}: {count} of {len(examples)} rows require the audio")
