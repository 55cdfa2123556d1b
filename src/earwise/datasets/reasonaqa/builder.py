"""Builds ReasonAQA, Mellow's training data, from published caption files and question files.

caption files -> captioned clips (`clips.py`) -> tasks for a teacher (`task_list.py`) -> its logged answers -> examples
(`tasks.py`), with the positions of right options balanced (`balance.py`), beside question files that are taken as they
are -> manifest, compared with the paper's table (`counts.py`)

Source: Mellow (arXiv:2503.08540) and the data set table of its repository. Deviations:
1. Pairs of clips are drawn by seed (the paper's rule is not known).
2. The position of the right option is balanced by seed in the questions that the teacher writes. Options of published
   questions keep their order.
3. Captions stay as they are; the released loader lowers them and begins with "The audio 1 is".
4. Hypotheses have three options, since the published fourth one, "I cannot determine", is never right: knowing that
   is enough to be better than chance without audio.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from earwise.data import manifest, sources
from earwise.data.sources import clothoaqa
from earwise.data.sources.example_builder import split_from_name
from earwise.data.sources.row_readers import OnSkip
from earwise.datasets.published.missing_audio import OnMissing, filter_missing_audio
from earwise.datasets.reasonaqa.balance import balance_positions
from earwise.datasets.reasonaqa.clips import CaptionedClip, caption_examples, captioned_clips
from earwise.datasets.reasonaqa.counts import CountComparison, compare_counts, subset_of
from earwise.datasets.reasonaqa.task_list import KINDS, TEACHER_KINDS, list_tasks
from earwise.datasets.reasonaqa.tasks import QUESTIONS_PER_CAPTION, TeacherTask, collect_examples
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard
from earwise.datasets.teachers.request_runner import RunEstimate, RunSummary
from earwise.datasets.teachers.teacher import Teacher
from earwise.engine.remote.openai_http import RequestLimits
from earwise.errors import ConfigError, DataError
from earwise.types import Example

CAPTION_SOURCES = ("audiocaps", "clotho", "wavcaps", "own")
"""Sources whose files hold captions; files of any other source hold questions, which are taken as they are."""


@dataclass(frozen=True, slots=True)
class ReasonAQAOptions:
    """What to build from captions, and how files are read."""

    kinds: tuple[str, ...] = ("caption",)
    """Parts to make from captions, out of `KINDS`."""
    per_caption: int = QUESTIONS_PER_CAPTION
    """Number of multiple-choice questions, and of open questions, for each caption."""
    seed: int = 0
    """Seed of pairs, wrong options and positions."""
    audio_root: Path | None = None
    """Folder that audio paths start from; None takes the folder of each file."""
    on_missing: OnMissing = "skip"
    """What to do with examples whose audio file does not exist."""

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ConfigError(f"kind {unknown[0]!r} is none of {', '.join(KINDS)}, all")

    @property
    def teacher_kinds(self) -> tuple[str, ...]:
        """The parts that a teacher writes."""
        return tuple(kind for kind in TEACHER_KINDS if kind in self.kinds)


@dataclass(frozen=True, slots=True)
class TeacherRun:
    """The teacher, the log of its answers, and how it is asked."""

    teacher: Teacher
    folder: Path
    """Folder of the log."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    """Rate limits and retries."""
    shard: Shard = UNSHARDED
    """The part of the requests that this process sends. A shard writes no manifest: copy the logs of all shards into
    one folder, then build without."""
    retry_failed: bool = False
    """Whether to send requests again that failed in an earlier run."""


@dataclass(slots=True)
class ReasonAQAResult:
    """What was built."""

    num_rows: int | None = None
    """Number of rows in the manifest; None if this was a shard, which writes none."""
    tasks: Counter[str] = field(default_factory=Counter)
    """Number of rows, by task."""
    licences: Counter[str] = field(default_factory=Counter)
    """Number of rows, by source and licence ("Clotho: ...")."""
    subsets: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of rows, by part of ReasonAQA and split."""
    teacher_summary: RunSummary | None = None
    """Counts of the requests to the teacher; None if it was asked nothing."""

    @property
    def comparison(self) -> list[CountComparison]:
        """The numbers of rows beside those of the paper."""
        return compare_counts(self.subsets)

    def count(self, example: Example) -> None:
        """Count one row of the manifest."""
        self.tasks[example.task] += 1
        self.licences[f"{example.source}: {example.licence}"] += 1
        self.subsets[subset_of(example)] += 1


def build_reasonaqa(
    files: Sequence[tuple[str, Path]],
    out: Path,
    run: TeacherRun,
    options: ReasonAQAOptions | None = None,
    *,
    on_skip: OnSkip = lambda line: None,
    notify: Callable[[str], None] = lambda line: None,
) -> ReasonAQAResult:
    """Build a manifest; the same call again asks the teacher only what is missing in its log.

    Args:
        files: Source and path of each published file, for example `("clotho", Path("clotho_captions_evaluation.csv"))`.
            Splits are taken from the files' names.
        out: Manifest to write.
        run: The teacher and its log.
        options: What to build; None takes the defaults.
        on_skip: Called with one line about every row and every request that cannot be used.
        notify: Called with every line about progress.
    Raises:
        ConfigError: if a shard is named but no part is written by a teacher.
        DataError: if no row results, or a file cannot be read or written.
        EngineError: if the teacher stays unreachable; its answers so far are kept.
    """
    options, skipped = options or ReasonAQAOptions(), _SkipCounter(on_skip)
    items = _read_captions(files, options, skipped, notify)
    result = ReasonAQAResult()
    if options.teacher_kinds and items:
        requests = (task.request for task in _tasks(items, run.teacher, options))
        result.teacher_summary = request_runner.ask_teacher(
            requests, run.teacher, run.folder, limits=run.limits, shard=run.shard, retry_failed=run.retry_failed
        )
        notify(result.teacher_summary.describe())
        if run.shard != UNSHARDED:
            return result
    elif run.shard != UNSHARDED:
        number, count = run.shard
        raise ConfigError(f"--shard {number}/{count}: nothing of this is asked of a teacher; leave --shard out")

    def rows() -> Iterator[Example]:
        for example in _examples(files, items, run, options, skipped):
            result.count(example)
            yield example
        if not result.tasks:
            raise DataError(
                f"{out}: no row came out, {skipped.describe()}; give --audio-root for the clips, or --missing keep"
            )

    result.num_rows = manifest.write(out, rows())
    return result


def plan_reasonaqa(
    files: Sequence[tuple[str, Path]],
    run: TeacherRun,
    options: ReasonAQAOptions,
    *,
    on_skip: OnSkip = lambda line: None,
    notify: Callable[[str], None] = lambda line: None,
) -> RunEstimate:
    """Estimate what `build_reasonaqa` would ask the teacher, without asking.

    Args:
        files: See `build_reasonaqa`.
        run: See `build_reasonaqa`.
        options: See `build_reasonaqa`.
        on_skip: See `build_reasonaqa`.
        notify: See `build_reasonaqa`.
    """
    items = _read_captions(files, options, on_skip, notify)
    requests = (task.request for task in _tasks(items, run.teacher, options))
    return request_runner.estimate_requests(requests, run.teacher, run.folder, limits=run.limits, shard=run.shard)


class _SkipCounter:
    """Passes lines about skipped rows on, and counts them."""

    def __init__(self, on_skip: OnSkip) -> None:
        self._on_skip = on_skip
        self.count, self.first = 0, ""

    def __call__(self, line: str) -> None:
        """Count one line and pass it on."""
        self.count += 1
        self.first = self.first or line
        self._on_skip(line)

    def describe(self) -> str:
        """Number of lines and the first one, or that there were none, for an error about an empty result."""
        return f"{self.count} were left out (first: {self.first})" if self.count else "the files hold none"


def _read_captions(
    files: Sequence[tuple[str, Path]], options: ReasonAQAOptions, on_skip: OnSkip, notify: Callable[[str], None]
) -> list[CaptionedClip]:
    """The captioned clips of all caption files."""
    caption_files = [(source, path) for source, path in files if source in CAPTION_SOURCES]
    items = captioned_clips(_read_files(caption_files, options, on_skip))
    notify(f"{len(items)} captioned clips")
    return items


def _read_files(files: Sequence[tuple[str, Path]], options: ReasonAQAOptions, on_skip: OnSkip) -> Iterator[Example]:
    """The examples of published files."""
    for source, path in files:
        yield from filter_missing_audio(_read_file(source, path, options, on_skip), options.on_missing, on_skip)


def _read_file(source: str, path: Path, options: ReasonAQAOptions, on_skip: OnSkip) -> Iterator[Example]:
    """The examples of one published file. ReasonAQA keeps the yes/no questions of ClothoAQA, with all annotators."""
    if source != "clothoaqa":
        return sources.load(source, path, on_skip, audio_root=options.audio_root)
    if not path.exists():
        raise DataError(f"{path}: no such file; name the file that {source} publishes")
    root, split = options.audio_root or path.parent, split_from_name(path)
    return clothoaqa.load(path, root, split, on_skip, votes="all", one_word=False)


def _tasks(items: Sequence[CaptionedClip], teacher: Teacher, options: ReasonAQAOptions) -> Iterator[TeacherTask]:
    """The tasks for the teacher; called again, the same tasks again."""
    return list_tasks(
        items,
        kinds=options.teacher_kinds,
        seed=options.seed,
        per_caption=options.per_caption,
        for_template=teacher.is_template,
    )


def _examples(
    files: Sequence[tuple[str, Path]],
    items: Sequence[CaptionedClip],
    run: TeacherRun,
    options: ReasonAQAOptions,
    on_skip: OnSkip,
) -> Iterator[Example]:
    """All examples: captions, what the teacher wrote, and the questions of the other files."""
    if "caption" in options.kinds:
        yield from caption_examples(items)
    if options.teacher_kinds and items:
        written = collect_examples(
            _tasks(items, run.teacher, options),
            lambda requests: request_runner.read_answers(requests, run.teacher, run.folder),
            on_skip,
        )
        yield from balance_positions(written, options.seed)
    question_files = [(source, path) for source, path in files if source not in CAPTION_SOURCES]
    yield from _read_files(question_files, options, on_skip)
