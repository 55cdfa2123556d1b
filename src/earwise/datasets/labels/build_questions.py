"""Builds a manifest of questions from a labelled collection: the whole of `earwise build labels`.

Reads the collection, drops excluded and unreadable clips, measures the clips if a task needs it, builds the questions
of all tasks (`labels/clip_questions.py`, `labels/pair_questions.py`, `labels/scenes.py`), and writes the manifest.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from earwise import progress
from earwise.audio import probe
from earwise.data import manifest
from earwise.datasets.labels import acoustics, clip_questions, collection, pair_questions, question_templates, scenes
from earwise.datasets.labels.acoustics import ClipAcoustics
from earwise.datasets.labels.clip_questions import ClipQuestionOptions, build_clip_questions
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.labels.pair_questions import PairQuestionOptions, build_pair_questions
from earwise.datasets.labels.render_scenes import write_scenes
from earwise.datasets.labels.scenes import plan_scenes
from earwise.datasets.labels.varied import clip_questions as varied
from earwise.datasets.labels.varied import refusals, word_questions
from earwise.datasets.labels.varied.scene_questions import vary_scenes
from earwise.datasets.scan.clip_stats import scan_clips
from earwise.errors import AudioError, ConfigError, DataError
from earwise.types import Example

VARIED_TASKS = (varied.TASK, refusals.TASK, word_questions.TASK)
TASKS = (*clip_questions.TASKS, *VARIED_TASKS, *pair_questions.TASKS, *scenes.TASKS)
FIELDS = tuple(dict.fromkeys((*clip_questions.FIELDS, *question_templates.SAME, *acoustics.FIELDS)))

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class QuestionOptions:
    """Which questions to build from a labelled collection."""

    tasks: tuple[str, ...] = clip_questions.TASKS
    """Tasks of `TASKS`."""
    fields: tuple[str, ...] | None = None
    """Fields to ask for, of `FIELDS`; None for all."""
    n_choices: int = 4
    """Number of options of a multiple-choice question."""
    per_clip: int | None = None
    """Maximum number of questions about a single clip, drawn at random; None for no limit. `varied` does not count."""
    draws: int = 2
    """How often `varied` asks for each fact, each time in other words and with other options."""
    limit: int | None = None
    """Maximum number of questions of each task (and field) about two clips or scenes in each split; None for no limit.
    """
    split: str | None = None
    """Split of the clips to use; None for all."""
    without: tuple[tuple[str, str], ...] = ()
    """Pairs of field and value; clips whose row has one of these values are left out."""
    licence: str | None = None
    """Licence of the clips whose rows state none."""
    seed: int = 0
    """Seed of the questions, their wording, their distractors and the order of options."""
    skip_unreadable: bool = False
    """Whether to leave out files that cannot be read; otherwise they are an error."""
    workers: int | None = None
    """Number of processes that decode; None for one per core."""


@dataclass(frozen=True, slots=True)
class BuiltQuestions:
    """Summary of the questions that were built."""

    questions: int
    clips: int
    """Number of clips that could be used."""
    skipped: int
    """Number of clips that cannot be read."""
    tasks: dict[str, int]
    """Task -> number of questions."""
    excluded: dict[str, int]
    """Reason -> number of clips without a question, or of questions that were not asked; the most frequent first."""


def build_questions(
    path: Path, out: Path, options: QuestionOptions | None = None, notify: Notify = lambda _: None
) -> BuiltQuestions:
    """Build a manifest of questions from a labelled collection.

    Args:
        path: Collection (`collection.load`).
        out: Manifest to write. The audio of scenes is written to the folder `NAME-clips` beside it.
        options: Which questions to build; None for the defaults.
        notify: Callback that receives a line for each clip that is left out, and progress messages.
    Returns:
        Summary of the questions.
    Raises:
        ConfigError: for an unknown task or field.
        AudioError: if a file cannot be read and `options.skip_unreadable` is False.
        DataError: if the collection is invalid or there are no questions.
    """
    options = options or QuestionOptions()
    _check_names(options.tasks, TASKS, "task")
    if options.fields is not None:
        _check_names(options.fields, FIELDS, "field")
    rows, root = collection.load(path)
    unused = collection.unused_files(path, rows)
    rows = _without(rows, options.without, notify)
    notify(f"{len(rows)} labelled clips in {path}")
    if unused:
        notify(unused)
    for line in collection.misspelled_fields(rows):
        notify(line)
    if options.licence:
        rows = [row if row.get("licence") else dict(row) | {"licence": options.licence} for row in rows]
    unreadable = _find_unreadable(rows, root, path, options.skip_unreadable, notify)
    rows = [row for row in rows if row["path"] not in unreadable]
    excluded, task_counts = Counter[str](), Counter[str]()
    examples = _build_all(rows, root, path, out, options, excluded, notify)
    count = manifest.write(out, _count_tasks(examples, task_counts, path, options.tasks))
    for reason, number in excluded.most_common():
        notify(f"no question: {number} {reason}")
    return BuiltQuestions(count, len(rows), len(unreadable), dict(task_counts), dict(excluded))


def _build_all(
    rows: Sequence[LabelRow],
    root: Path,
    path: Path,
    out: Path,
    options: QuestionOptions,
    excluded: Counter[str],
    notify: Notify,
) -> Iterator[Example]:
    """The questions of all tasks; scenes are rendered while the result is consumed."""
    clip_tasks = [task for task in options.tasks if task in clip_questions.TASKS]
    pair_tasks = [task for task in options.tasks if task in pair_questions.TASKS]
    scene_tasks = [task for task in options.tasks if task in scenes.TASKS]
    measurements: dict[str, ClipAcoustics] = {}
    if scene_tasks or "compare" in pair_tasks:
        measurements = _measure(rows, root, path, options, notify)
    examples: list[Iterable[Example]] = []
    if clip_tasks:
        fields = _select_fields(options.fields, clip_questions.FIELDS)
        clip_options = ClipQuestionOptions(
            options.seed, clip_tasks, fields, options.n_choices, options.per_clip, options.split
        )
        examples.append(build_clip_questions(rows, root, clip_options, excluded))
    if varied.TASK in options.tasks:
        examples.append(
            varied.build_varied_questions(rows, root, seed=options.seed, draws=options.draws, split=options.split)
        )
    if refusals.TASK in options.tasks:
        examples.append(refusals.build_refusals(rows, root, seed=options.seed, split=options.split))
    if word_questions.TASK in options.tasks:
        examples.append(word_questions.build_word_questions(rows, root, seed=options.seed, split=options.split))
    if pair_tasks:
        fields = _select_fields(options.fields, (*question_templates.SAME, *acoustics.FIELDS))
        pair_options = PairQuestionOptions(options.seed, pair_tasks, fields, options.limit, options.split)
        examples.append(build_pair_questions(rows, root, measurements, pair_options, excluded))
    if scene_tasks:
        planned = plan_scenes(
            rows,
            measurements,
            seed=options.seed,
            tasks=scene_tasks,
            n_choices=options.n_choices,
            limit=options.limit,
            split=options.split,
            excluded=excluded,
        )
        notify(f"{len(planned)} scenes to render")
        on_error = (lambda error: notify(f"left out a scene: {error}")) if options.skip_unreadable else None
        written = write_scenes(planned, root, out.parent / f"{out.stem}-clips", on_error=on_error)
        if varied.TASK in options.tasks:
            written = vary_scenes(written, varied.labels_by_name(rows), seed=options.seed)
        examples.append(written)
    return chain.from_iterable(examples)


def _check_names(names: Sequence[str], valid_names: Sequence[str], kind: str) -> None:
    """Raise ConfigError for an unknown task or field."""
    for name in names:
        if name not in valid_names:
            raise ConfigError(f"{kind} {name!r} is none of {', '.join(valid_names)}")
    if not names:
        raise ConfigError(f"no {kind} is named; choose out of {', '.join(valid_names)}")


def _select_fields(fields: Sequence[str] | None, valid_fields: Iterable[str]) -> list[str] | None:
    """The requested fields that a builder knows; None if all fields are requested."""
    valid = set(valid_fields)
    return None if fields is None else [field for field in fields if field in valid]


def _without(rows: list[LabelRow], conditions: Sequence[tuple[str, str]], notify: Notify) -> list[LabelRow]:
    """The rows that have none of the given values."""
    for field, value in conditions:
        remaining = collection.rows_without(rows, field, value)
        notify(f"--where-not {field}={value}: {len(rows) - len(remaining)} clips left out")
        rows = remaining
    return rows


def _find_unreadable(rows: Sequence[LabelRow], root: Path, path: Path, skip: bool, notify: Notify) -> set[str]:
    """Paths of the clips whose file headers cannot be read.

    Args:
        rows: Label rows.
        root: Folder that their paths start from.
        path: The collection, for error messages.
        skip: Whether to report the clips instead of raising an error.
        notify: Callback for clips that are left out, and progress.
    """
    unreadable: set[str] = set()
    for row in progress.track(rows, "clips probed", len(rows)):
        try:
            probe(root / row["path"])
        except AudioError as error:
            if not skip:
                raise AudioError(f"{path}: {error}, or use --skip-bad") from error
            unreadable.add(row["path"])
            notify(f"left out: {error}")
    return unreadable


def _measure(
    rows: Sequence[LabelRow], root: Path, path: Path, options: QuestionOptions, notify: Notify
) -> dict[str, ClipAcoustics]:
    """Path of a row -> acoustic measurements of the clip; unreadable clips are left out or raise AudioError."""
    clip_paths = [row["path"] for row in rows if options.split in (None, row["split"])]
    notify(f"measuring {len(clip_paths)} clips")
    measurements = {}
    stats = scan_clips([root / clip for clip in clip_paths], options.workers, analysis=acoustics.measure)
    for clip_path, clip in zip(clip_paths, stats, strict=True):
        if not clip.error:
            measurements[clip_path] = clip.analysis
        elif options.skip_unreadable:
            notify(f"left out: {clip.error}")
        else:
            raise AudioError(f"{path}: {clip.error}, or use --skip-bad")
    return measurements


def _count_tasks(
    examples: Iterable[Example], counts: Counter[str], path: Path, tasks: Sequence[str]
) -> Iterator[Example]:
    """Pass the examples on and count their tasks; raise DataError if there are none, so that no manifest is written."""
    for example in examples:
        counts[example.task] += 1
        yield example
    if not counts:
        raise DataError(
            f"{path}: gave no question of tasks {', '.join(tasks)}; two clips need the same source and split, and a "
            "label or a difference beyond doubt, scenes need clips with one sound or instrument label each"
        )
