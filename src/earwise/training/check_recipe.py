"""Opens the rows of a recipe and checks everything that can be checked before a model is loaded.

A run that would stop after an hour over a missing file or a misspelt reward stops at once. The rows that were opened
here are handed to the run (`run.start`), so manifests are read, filtered and checked once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from earwise.algorithms.curriculum import Band, pass_rate, within_band
from earwise.audio import clip_duration
from earwise.config.control.run_control import EvalConfig
from earwise.config.recipe import Recipe
from earwise.config.stages import SftConfig, Source, StageConfig
from earwise.data import manifest
from earwise.data.index import ManifestRows, open_rows
from earwise.data.manifest_path import manifest_path, task_file
from earwise.errors import AudioError, DataError
from earwise.prompts import question_text
from earwise.training.control.row_overlap import MeasuredRows, check_overlap
from earwise.training.control.run_length import with_max_steps
from earwise.training.logging.sample_log import evenly_spaced_rows
from earwise.training.logging.tracking import check_trackers
from earwise.training.memory_check import check_quantized_stages
from earwise.training.rollout.server_check import check_rollout_servers
from earwise.training.stages.stage import StageData
from earwise.training.stages.table import stage_class
from earwise.types import AudioClip, Example

Notify = Callable[[str], None]
OpenedManifests = dict[tuple[Path, bool], ManifestRows]
"""Manifest, and whether its audio files were looked for -> its rows."""
Required = Literal["answer", "preference"] | None
"""What a row needs for a stage; None for its question alone."""
LoadEvalRows = Callable[[EvalConfig, Path], Sequence[Example]]
"""Loads the rows of an entry under `eval:`; the second argument is the folder that its file starts from."""

PROBE_ALL_ROWS = 10_000
"""Largest number of rows of a source whose audio files are all looked at; that of more would take minutes."""
DEMO_DATA = Path("runs/data-demo")
"""Folder of the manifests that `earwise.apps.data_demo` makes, as the recipes' small profiles name it."""
PROBED_ROWS = 2_000
"""Number of rows, evenly spread, whose audio files are looked at in a larger source."""


@dataclass(frozen=True, slots=True)
class CheckedStage:
    """The rows of a stage.

    Attributes:
        config: Settings of the stage, with `max_steps` computed where the recipe gives epochs.
        data: The rows to train on.
        row_counts: Manifest (with its `where`) -> number of rows that the stage uses.
    """

    config: StageConfig
    data: StageData
    row_counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """A recipe that was checked, with the rows of its stages in order."""

    stages: tuple[CheckedStage, ...]

    @property
    def row_counts(self) -> list[dict[str, int]]:
        """`CheckedStage.row_counts` of each stage."""
        return [stage.row_counts for stage in self.stages]


def check_training(
    recipe: Recipe,
    base: Path,
    notify: Notify = lambda line: None,
    *,
    load_eval_rows: LoadEvalRows | None = None,
) -> CheckedRecipe:
    """Open the rows of all stages and look for everything that would stop the run later.

    Args:
        recipe: Resolved recipe.
        base: Folder that relative manifests start from.
        notify: Receives progress.
        load_eval_rows: Loads the rows of an entry under `eval:`, of any task; None: rows of manifests are read here,
            those of other tasks are not checked.
    Raises:
        ConfigError: for an unknown style, reward or tracker, or a rollout server that cannot do what is asked of it.
        DataError: for a bad manifest, or rows that a stage cannot train on.
        AudioError: for audio that cannot be read, unless the recipe skips such rows; names manifest, row and file.
    """
    check_quantized_stages(recipe)
    check_trackers(recipe.trackers)
    check_rollout_servers(recipe, notify)
    opened: OpenedManifests = {}
    stages = tuple(check_stage(config, base, opened, notify) for config in recipe.stages)
    load = load_eval_rows or _manifest_rows
    entries = {entry.model_dump_json(): entry for entry in (*recipe.eval, *_evaluations_of_stages(recipe))}
    measured = [MeasuredRows(entry.manifest, load(entry, base)) for entry in entries.values()]
    for entry, rows in zip(entries.values(), measured, strict=True):
        if entry.task == "manifest":  # other tasks have styles of their own
            question_text("", (), entry.style)  # refuses unknown styles
        _check_audio(task_file(entry.task, entry.manifest, base), rows.rows, notify)
    measured += [MeasuredRows("held_out", stage.data.held_out) for stage in stages if stage.data.held_out]
    trained = [rows for stage in stages for rows, _ in stage.data.mixture]
    check_overlap(trained, measured, stops=recipe.on_overlap == "stop", notify=notify)
    return CheckedRecipe(stages)


def _evaluations_of_stages(recipe: Recipe) -> list[EvalConfig]:
    return [stage.eval_dataset for stage in recipe.stages if stage.eval_dataset is not None]


def _manifest_rows(entry: EvalConfig, base: Path, notify: Notify = lambda line: None) -> Sequence[Example]:
    """The rows of an entry that names a manifest; none for other tasks."""
    if entry.task != "manifest":
        return ()
    path = manifest_path(entry.manifest, base)
    rows = manifest.select(manifest.read(path, require_audio=not entry.allow_text_only, notify=notify), entry.where)
    if not rows:
        raise DataError(f"eval: {entry.manifest} has no row with {dict(entry.where)}; correct `where`")
    return evenly_spaced_rows(rows, entry.limit or len(rows))


def check_stage(config: StageConfig, base: Path, opened: OpenedManifests, notify: Notify) -> CheckedStage:
    """Open and check the rows of one stage.

    Args:
        config: Settings of the stage.
        base: Folder that relative manifests start from.
        opened: Manifests that are already open, which are used again; extended by this call.
        notify: Receives progress.
    Raises:
        ConfigError, DataError, AudioError: as `check_training`.
    """
    stage = stage_class(config)
    for style in config.data.styles:
        question_text("", (), style)  # refuses unknown styles
    mixture = []
    row_counts: dict[str, int] = {}
    required: Required = (
        "preference" if stage.trains_on_preferences(config) else "answer" if config.needs_answers else None
    )
    check_files = config.data.on_bad_row == "stop"
    for source in config.data.mixture:
        name = source.manifest + "".join(f" {key}={value}" for key, value in source.where.items())
        if source.optional and not manifest_path(source.manifest, base).exists():
            notify(f"{name}: no such manifest; left out of the mixture")
            continue
        rows = _open_source(source, base, opened, notify, required=required, check_files=check_files)
        if not rows:
            notify(f"{name}: no such row; left out of the mixture")
            continue
        stage.check(config, rows, name)
        if isinstance(config, SftConfig) and config.assistant_turns == "last" and (talks := rows.with_history()):
            notify(
                f"{name}: {len(talks)} rows have earlier assistant turns, which are read and not trained; "
                "assistant_turns: all trains them too"
            )
        if check_files:
            _check_audio(manifest_path(source.manifest, base), rows, notify)
        rows = _apply_curriculum(config, rows)
        mixture.append((rows, source.weight))
        row_counts[name] = len(rows)
    if not mixture:
        raise DataError(f"stage {config.name or config.kind}: no part of its mixture has a row; build the data first")
    held_out_source = stage.held_out_source(config)
    held_out: Sequence[Example] = ()
    if held_out_source is not None:
        held_out = _open_source(held_out_source, base, opened, notify, required="answer", check_files=check_files)
    _check_sound(config, mixture)
    config = with_max_steps(config, [rows for rows, _ in mixture])
    eval_rows = _scorable_rows(config, base, opened, notify)
    return CheckedStage(config, StageData(mixture, held_out, eval_rows), row_counts)


def _scorable_rows(config: StageConfig, base: Path, opened: OpenedManifests, notify: Notify) -> Sequence[Example]:
    """The rows of `eval_dataset` on which the stage can compute a loss.

    Raises:
        DataError: if the loss on them decides which checkpoint is best, and there are none.
    """
    entry = config.eval_dataset
    if entry is None or entry.task != "manifest":
        return ()
    path = manifest_path(entry.manifest, base)
    if (path, True) not in opened:
        opened[path, True] = open_rows(path, notify=notify)
    selected = opened[path, True].select(entry.where)
    rows = evenly_spaced_rows(selected, entry.limit or len(selected))
    rows = [row for row in rows if stage_class(config).can_score(config, row)]
    if not rows and config.best_metric == "loss" and (config.keeps_best or config.early_stopping_patience):
        raise DataError(
            f"{path}: no row has the reply that a stage of kind {config.kind} needs for its loss in style "
            f"{entry.style!r}; set metric_for_best_model: accuracy, or another eval_dataset.style"
        )
    return rows


def _open_source(
    source: Source,
    base: Path,
    opened: OpenedManifests,
    notify: Notify,
    *,
    required: Required,
    check_files: bool,
) -> ManifestRows:
    """The rows of a source that have what the stage needs; a manifest that several sources name is opened once.

    Args:
        source: The source.
        base: Folder that a relative manifest starts from.
        opened: Manifests that are already open; extended by this call.
        notify: Receives progress, and the number of rows that are left out.
        required: What a row needs.
        check_files: Whether every audio file must exist.
    Raises:
        DataError: if the manifest is missing, has no such row and is not optional, or has a row without a clip that is
            not declared.
    """
    path = manifest_path(source.manifest, base)
    if (path, check_files) not in opened:
        if not path.exists():
            raise DataError(f"{path}: is not there; {_missing_manifest_remedy(path)}")
        opened[path, check_files] = open_rows(path, check_files=check_files, notify=notify)
    selected = opened[path, check_files].select(source.where)
    rows = selected.select({}, require_answer=required == "answer", require_preference=required == "preference")
    is_answer = required != "preference"
    missing, command = ("an answer to train on", "labels") if is_answer else ("`rejected`", "preferences")
    condition = f" with {dict(source.where)}" if source.where else ""
    if not selected and source.optional:
        return selected
    if not selected and required is None:
        raise DataError(f"{path}: none of {len(opened[path, check_files])} rows{condition}; correct `where`")
    if not rows:
        raise DataError(
            f"{path}: none of {len(opened[path, check_files])} rows{condition} has {missing}; build some: "
            f"earwise build {command}"
        )
    if len(rows) < len(selected):
        notify(f"{path}: {len(selected) - len(rows)} of {len(selected)} rows are left out: without {missing}")
    if not source.allow_text_only and (deaf_rows := rows.without_sound()):
        raise DataError(
            f"{path}:row {deaf_rows.line_number(0)}: no clip ({len(deaf_rows)} such rows); add the audio part, or "
            "declare text alone: text_only: true in the row, or allow_text_only: true in data.mixture"
        )
    return rows


def _missing_manifest_remedy(path: Path) -> str:
    """What to do about a manifest that is not there: those of the small profiles are made by one command."""
    if str(DEMO_DATA) in str(path):
        return f"make it in minutes: `python -m earwise.apps.data_demo --out {DEMO_DATA}` (in a clone `make data-demo`)"
    return (
        "build it (docs/how-to/build-questions.md), give the folder of the manifests with --data, or use another "
        "profile of the recipe (`earwise recipe NAME` prints them)"
    )


def _check_sound(config: StageConfig, mixture: Sequence[tuple[ManifestRows, float]]) -> None:
    """Refuse a stage without any clip: nothing of what it trains would be heard.

    Raises:
        DataError: with the number of rows.
    """
    if not any(rows.with_sound() for rows, _ in mixture):
        count = sum(len(rows) for rows, _ in mixture)
        raise DataError(
            f"stage {config.label}: none of its {count} rows has a clip; add a manifest with sound to data.mixture"
        )


def _apply_curriculum(config: StageConfig, rows: ManifestRows) -> ManifestRows:
    """Leave out rows outside the band of order `banded`; refuse rows without a pass rate where the order needs it."""
    if config.curriculum.order == "banded":
        return rows.take(within_band(rows, Band(**config.curriculum.band.model_dump())))
    if config.curriculum.order == "easy_to_hard":
        for row in rows:
            pass_rate(row)
    return rows


def _check_audio(path: Path, rows: Sequence[Example], notify: Notify) -> None:
    """Read the headers of the audio files of a source's rows, or of an evenly spread part of them.

    Raises:
        AudioError: naming manifest, row and file.
    """
    interval = len(rows) // PROBED_ROWS if len(rows) > PROBE_ALL_ROWS else 1
    if interval > 1:
        notify(
            f"{path}: looked at the audio of one row in {interval}; `earwise build scan` looks at all {len(rows)} rows"
        )
    for number in range(0, len(rows), interval):
        row = rows[number]
        for clip in row.clips:
            try:
                _probe_once(clip)
            except AudioError as error:
                raise AudioError(f"{path}: row {row.id!r}: {error}, or set data.on_bad_row: skip") from error


@cache
def _probe_once(clip: AudioClip) -> None:
    """Read the header of an audio file, unless this process has already read it without error; check that a segment
    lies in it."""
    clip_duration(clip)
