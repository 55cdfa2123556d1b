"""Readers of public data sets, one file per data set: each converts the published files to Examples, row by row.

First step of `earwise build source`. A reader is a function `load(path, audio_root, split, on_skip)` that yields
Examples and reports every row that it cannot use to `on_skip`, as one line naming file and row. To add a data set,
write a reader and add a row to `SOURCES` (lazy strings: a reader is imported when it is used); a reader outside this
package is named as `module:function`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from earwise.config.resolve import check_parameters, resolve_entry
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
    "paqa": "earwise.data.sources.paqa:load",
    "vocalsound": "earwise.data.sources.vocalsound:load",
    "librispeech": "earwise.data.sources.librispeech:load",
    "common-voice": "earwise.data.sources.common_voice:load",
    "covost2": "earwise.data.sources.covost2:load",
    "multilingual-alpaca-speech": "earwise.data.sources.multilingual_alpaca_speech:load",
    "voice-assistant": "earwise.data.sources.voice_assistant:load",
    "own": "earwise.data.sources.own_captions:load",
}

Loader = Callable[[Path, Path, str, OnSkip], Iterator[Example]]


def loader(source: str) -> Loader:
    """The reader of a source: a key of `SOURCES`, or a user's own `module:function`.

    Raises:
        ConfigError: if there is no such source, module or function.
    """
    function = resolve_entry(SOURCES, source, "source")
    check_parameters(function, ("path", "root", "split", "on_skip"), source, "source")
    return cast(Loader, function)


def load(
    source: str, path: Path, on_skip: OnSkip, *, audio_root: Path | None = None, split: str | None = None
) -> Iterator[Example]:
    """Read a published file, row by row, in constant memory unless the reader's documentation says otherwise.

    Args:
        source: A key of `SOURCES`, or `module:function`.
        path: The published file; for `librispeech` the folder, for `voice-assistant` a file or the folder.
        on_skip: Callback that receives one line for every row that cannot be used.
        audio_root: Folder that audio paths start from; None for the folder of `path`.
        split: Split of the file (train, val or test); None derives it from the file's name.
    Raises:
        ConfigError: if there is no such source.
        DataError: if the file is missing or is not a file of this data set.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; name the file that {source} publishes")
    root = audio_root or (path if path.is_dir() else path.parent)
    return loader(source)(path, root, split or split_from_name(path), on_skip)
