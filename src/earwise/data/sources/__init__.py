"""The public data sets, one file each: a reader turns a set's published files into Examples, row by row.

Between the files as their authors publish them and the manifest. `SOURCES` is the explicit table (lazy strings); a
source of your own is `module:function` with the same signature: `load(path, audio_root, split, on_skip)`, a generator of
Examples that hands every row it cannot use to `bad` as one line naming file and row.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from earwise.config.resolve import resolve_entry
from earwise.data.sources.example_builder import split_from_name
from earwise.data.sources.row_readers import OnSkip
from earwise.errors import DataError
from earwise.types import Example

SOURCES = {
    "audiocaps": "earwise.data.sources.audiocaps:load",
    "clotho": "earwise.data.sources.clotho:load",
    "clothoaqa": "earwise.data.sources.clothoaqa:load",
    "entailment": "earwise.data.sources.entailment:load",
    "adiff": "earwise.data.sources.adiff:load",
    "reasonaqa": "earwise.data.sources.reasonaqa:load",
    "avqa": "earwise.data.sources.avqa:load",
    "musicbench": "earwise.data.sources.musicbench:load",
    "meld": "earwise.data.sources.meld:load",
    "audioset": "earwise.data.sources.audioset:load",
    "wavcaps": "earwise.data.sources.wavcaps:load",
    "audioskills": "earwise.data.sources.audioskills:load",
    "audiomcq": "earwise.data.sources.audiomcq:load",
    "vocalsound": "earwise.data.sources.vocalsound:load",
    "librispeech": "earwise.data.sources.librispeech:load",
    "common-voice": "earwise.data.sources.common_voice:load",
    "covost2": "earwise.data.sources.covost2:load",
    "multilingual-alpaca-speech": "earwise.data.sources.multilingual_alpaca_speech:load",
}

Loader = Callable[[Path, Path, str, OnSkip], Iterator[Example]]


def loader(source: str) -> Loader:
    """The reader of a source in `SOURCES`, or of a user's own `module:function`.

    Raises:
        ConfigError: if there is no such source, module or function.
    """
    return cast(Loader, resolve_entry(SOURCES, source, "source"))


def load(
    source: str, path: Path, on_skip: OnSkip, *, audio_root: Path | None = None, split: str | None = None
) -> Iterator[Example]:
    """Read `path` as `source`, row by row, in constant memory unless the reader says otherwise.

    Args:
        source: A key of `SOURCES`, or `module:function`.
        path: The published file, or for `librispeech` the folder.
        on_skip: Takes one line for every row that cannot be used.
        audio_root: Folder that audio paths start from; the folder of `path` by default.
        split: train, val or test; None tells it from the file's name.
    Raises:
        ConfigError: if there is no such source.
        DataError: if the file is missing or is not of this source.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; name the file that {source} publishes")
    root = audio_root or (path if path.is_dir() else path.parent)
    return loader(source)(path, root, split or split_from_name(path), on_skip)
