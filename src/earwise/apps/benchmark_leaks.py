"""Items of a benchmark that stand in training data, and the score without them.

Above evaluation and the checks of data sets. An item counts as seen in training if a training row has its question with
its options, is about its video, or has a file that is a copy of its file: the same bytes, or the same recording with
another codec, level, sample rate or trim (`datasets/checks/fingerprint.py`; the waveforms decide).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from earwise.audio import decode
from earwise.data import manifest
from earwise.datasets.checks import fingerprint
from earwise.datasets.checks.contamination import VIDEO_GROUP, question_hash
from earwise.datasets.checks.row_checks import clip_groups
from earwise.datasets.scan.clip_stats import ClipStats, scan_clips
from earwise.evaluation.results import METRICS, read_run
from earwise.evaluation.task import Task
from earwise.files import write_json
from earwise.types import Example

OVERLAP = "training_overlap.json"


def find_leaks(examples: Sequence[Example], training: Sequence[Path], *, workers: int | None = 1) -> dict[str, str]:
    """The items of a benchmark that stand in training data.

    Args:
        examples: Items of the benchmark.
        training: Training manifests; clips that are not there are compared by video and question only.
        workers: Number of processes that decode clips; None for one per core.
    Returns:
        Id of an item -> what a training row has in common with it, in the order of the items.
    Raises:
        DataError: if a manifest cannot be read.
    """
    return _shared_content(examples, read_training(training), workers)


def read_training(paths: Sequence[Path]) -> list[Example]:
    """The rows of training manifests, whether their clips are there or not.

    Raises:
        DataError: if a manifest cannot be read.
    """
    return [row for path in paths for row in manifest.read(path, check_files=False, require_audio=False)]


def _shared_content(examples: Sequence[Example], rows: Sequence[Example], workers: int | None) -> dict[str, str]:
    """What each item has in common with a training row, see `find_leaks`."""
    questions: dict[str, str] = {}
    videos: dict[str, str] = {}
    for row in rows:
        if value := question_hash(row.question, row.choices):
            questions.setdefault(value, row.id)
        videos |= {group: row.id for group in clip_groups(row) if group.startswith(VIDEO_GROUP)}
    copies = _copied_files(examples, rows, workers)
    reasons: dict[str, str] = {}
    for example in examples:
        shared_video = next((group for group in clip_groups(example) if group in videos), None)
        copied = next((copies[path] for path in example.audio_paths if path in copies), None)
        if row_id := questions.get(question_hash(example.question, example.choices) or ""):
            reasons[example.id] = f"question and options of training row {row_id}"
        elif shared_video is not None:
            reasons[example.id] = f"video of training row {videos[shared_video]}"
        elif copied is not None:
            reasons[example.id] = copied
    return reasons


def report_leaks(out: Path, examples: Sequence[Example], training: Sequence[Path], task: Task) -> dict[str, Any]:
    """Look for the items of a finished run in training data, and write the result beside it.

    Args:
        out: Folder of the run; `training_overlap.json` is written there, and the same into `metrics.json`.
        examples: Items of the run.
        training: Training manifests.
        task: The task, which makes metrics of the remaining rows.
    Returns:
        `training` (names of the manifests), `count` of the items that were found, `n` items in all, `items` (id ->
        reason), `missing_clips` (number of training clips that are not there), and `without` (all metrics of the
        labelled items that were not found; None if none is left).
    Raises:
        DataError: if a manifest cannot be read, or the run is not finished.
    """
    rows, run = read_training(training), read_run(out)
    reasons = _shared_content(examples, rows, workers=1)
    unseen = [row for row in run.first.values() if row["scores"] is not None and row["id"] not in reasons]
    result = {
        "training": [path.name for path in training],
        "count": len(reasons),
        "n": len(examples),
        "items": reasons,
        "missing_clips": sum(not path.is_file() for path in {clip for row in rows for clip in row.audio_paths}),
        "without": task.aggregate(unseen) if unseen else None,
    }
    write_json(out / OVERLAP, result)
    write_json(out / METRICS, run.metrics | {"training_overlap": result})
    return result


def _copied_files(examples: Iterable[Example], rows: Iterable[Example], workers: int | None) -> dict[Path, str]:
    """Files of the benchmark -> the training file that each is a copy of."""
    training_clips = _readable({path for row in rows for path in row.audio_paths}, workers)
    clips = _readable({path for example in examples for path in example.audio_paths}, workers)
    by_hash = {clip.sha256: clip for clip in training_clips}
    reasons = {
        Path(clip.path): f"the training file {Path(by_hash[clip.sha256].path).name}"
        for clip in clips
        if clip.sha256 in by_hash
    }
    sketches = [clip.analysis for clip in (*training_clips, *clips)]
    for pair in fingerprint.find_near_copies(sketches, n_data=len(training_clips)):
        training_path, path = Path(training_clips[pair.first].path), Path(clips[pair.second - len(training_clips)].path)
        if path in reasons:
            continue
        similarity = fingerprint.waveform_similarity(*(decode(file) for file in (training_path, path)))
        if similarity >= fingerprint.MIN_SIMILARITY:
            reasons[path] = f"a copy of the training file {training_path.name}"
    return reasons


def _readable(paths: Iterable[Path], workers: int | None) -> list[ClipStats]:
    """Hash and sketch of the files that can be read; evaluation and training report the others."""
    scanned = scan_clips(sorted(paths), workers, analysis=fingerprint.sketch)
    return [clip for clip in scanned if not clip.error]
