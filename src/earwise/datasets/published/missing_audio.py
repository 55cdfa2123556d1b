"""Leaves out examples whose audio files do not exist, as data sets on the web lose clips over time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from earwise.data.sources.row_readers import OnSkip
from earwise.errors import DataError
from earwise.types import Example

OnMissing = Literal["skip", "keep", "error"]
CACHED_PATHS = 1 << 16
"""Files whose existence is remembered. Examples about one clip follow each other, so that a small cache suffices."""


def filter_missing_audio(examples: Iterable[Example], on_missing: OnMissing, on_skip: OnSkip) -> Iterator[Example]:
    """Check that the audio files of examples exist.

    Args:
        examples: The examples; consumed one by one.
        on_missing: What to do with an example that lacks a file: `skip` leaves it out, `keep` keeps it without looking,
            `error` raises.
        on_skip: Called with one line about every example that is left out.
    Raises:
        DataError: under `error`, naming the example and the file.
    """
    exists: dict[str, bool] = {}
    for example in examples:
        if on_missing == "keep":
            yield example
            continue
        missing_path = None
        for path in map(str, example.audio_paths):
            if path not in exists:
                if len(exists) > CACHED_PATHS:
                    exists.clear()
                exists[path] = Path(path).is_file()
            if not exists[path]:
                missing_path = path
        if missing_path is None:
            yield example
        elif on_missing == "error":
            raise DataError(
                f"example {example.id!r}: audio {missing_path} is missing; give --audio-root, or --missing skip"
            )
        else:
            on_skip(f"{example.id}: audio {missing_path} is missing")
