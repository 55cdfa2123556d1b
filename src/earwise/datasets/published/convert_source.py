"""Converts a file of a public data set to a manifest: the whole of `earwise build source` and `earwise build avqa`.

Reads the published file (`data/sources/`), filters the questions of AVQA, leaves out rows without audio, optionally
adds choices to open questions, and writes the manifest. Rows that cannot be used never stop the conversion: they are
listed in `OUT.skipped.txt` and counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from earwise import progress
from earwise.data import manifest, sources
from earwise.data.sources import clothoaqa
from earwise.data.sources.clothoaqa import Votes
from earwise.data.sources.example_builder import split_from_name
from earwise.data.sources.row_readers import OnSkip
from earwise.data.sources.skip_log import SkipLog
from earwise.datasets.published.add_choices import add_choices
from earwise.datasets.published.avqa_filters import filter_questions
from earwise.datasets.published.missing_audio import OnMissing, filter_missing_audio
from earwise.errors import ConfigError, DataError
from earwise.types import Example


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a published file is converted."""

    audio_root: Path | None = None
    """Folder that audio paths start from; None for the folder of the file."""
    split: str | None = None
    """Split of the file; None derives it from the file's name."""
    on_missing: OnMissing = "skip"
    """What to do with rows whose audio does not exist."""
    n_choices: int | None = None
    """Number of options to give to open questions (see `add_choices`); None leaves them open."""
    votes: Votes | None = None
    """How the answers of ClothoAQA's annotators are merged (see `data/sources/clothoaqa.py`)."""
    drop: tuple[str, ...] = ()
    """Kinds of AVQA questions to leave out, of `avqa_filters.FILTERS`."""
    seed: int = 0
    """Seed of the added options and their order."""


@dataclass(slots=True)
class ConvertedSource:
    """Summary of a converted file."""

    num_rows: int = 0
    num_skipped: int = 0
    """Number of rows that cannot be used."""
    num_unbalanced: int = 0
    """Number of questions that were left out so that the added options are balanced."""
    num_dropped: Counter[str] = field(default_factory=Counter)
    """Kind of AVQA question -> number of questions that were left out."""
    tasks: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    """Source and licence ("Clotho: ...") -> number of rows."""


def convert_source(
    source: str,
    path: Path,
    out: Path,
    options: SourceOptions | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> ConvertedSource:
    """Convert a file of a public data set to a manifest.

    Args:
        source: Name of the data set, a key of `sources.SOURCES`, or `module:function`.
        path: The published file.
        out: Manifest to write.
        options: How to convert it; None for the defaults.
        notify: Callback that receives the first skipped rows and their number.
    Raises:
        ConfigError: for an unknown source, or an option that does not apply to it.
        DataError: if the file is not a file of this data set, or there are no usable rows.
    """
    options = options or SourceOptions()
    if options.votes and source != "clothoaqa":
        raise ConfigError(f"--votes {options.votes} is for clothoaqa; {source} has one answer a question")
    converted = ConvertedSource()
    with SkipLog(out, notify) as skip_log:
        examples = _read(source, path, options, skip_log)
        if options.drop:
            examples = filter_questions(examples, options.drop, converted.num_dropped)
        rows: Iterable[Example] = filter_missing_audio(examples, options.on_missing, skip_log)
        if options.n_choices:
            rows, converted.num_unbalanced = add_choices(rows, options.n_choices, options.seed)
        counted = _count_rows(rows, converted, skip_log, out)
        converted.num_rows = manifest.write(out, progress.track(counted, "rows converted"))
        converted.num_skipped = skip_log.count
    return converted


def _read(source: str, path: Path, options: SourceOptions, on_skip: OnSkip) -> Iterator[Example]:
    """The examples of the published file."""
    if options.votes is None:
        return sources.load(source, path, on_skip, audio_root=options.audio_root, split=options.split)
    if not path.exists():
        raise DataError(f"{path}: no such file; name the file that {source} publishes")
    root, split = options.audio_root or path.parent, options.split or split_from_name(path)
    one_word = options.votes != "all"  # ReasonAQA keeps the answers of all annotators, to yes/no questions only
    return clothoaqa.load(path, root, split, on_skip, votes=options.votes, one_word=one_word)


def _count_rows(
    examples: Iterable[Example], converted: ConvertedSource, skip_log: SkipLog, out: Path
) -> Iterator[Example]:
    """Pass the examples on and count them; raise DataError if there are none, so that no manifest is written."""
    for example in examples:
        converted.tasks[example.task] += 1
        converted.licences[f"{example.source}: {example.licence}"] += 1
        yield example
    if not converted.tasks:
        reason = (
            f"{skip_log.count} were left out (first: {skip_log.first})" if skip_log.count else "the files hold none"
        )
        raise DataError(f"{out}: no row came out, {reason}; give --audio-root for the clips, or --missing keep")
