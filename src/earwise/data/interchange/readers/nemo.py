"""Reads NeMo manifests: JSON lines of `audio_filepath`, `duration`, `offset` and `text`.

`text` is the transcript, or in a row with a `question` its answer. An `offset` with a `duration` is a segment of the
file; a `duration` alone is the length of the file and says nothing new. Paths start from the manifest's folder.
"""

from collections.abc import Iterator

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import Clip, DatasetLocation, ForeignRow
from earwise.data.interchange.readers.json_objects import json_objects
from earwise.errors import DataError


def read(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """One row per line.

    Raises:
        DataError: for a line without `audio_filepath`, or with one that is no text or a negative time.
    """
    for row_location, values in json_objects(location.path):
        path = values.pop("audio_filepath", None)
        if not isinstance(path, str) or not path:
            raise DataError(
                f"{row_location}: audio_filepath is {path!r:.60}; a NeMo manifest names a file in every row"
            )
        offset, duration = (_time(values.pop(name, None), name, row_location) for name in ("offset", "duration"))
        start = offset or None
        # an offset of 0 with a duration may be a segment at the beginning, or the whole file: both end there
        end = offset + duration if offset is not None and duration is not None else None
        clip = Clip(location.path.parent / path, start, end)
        text_column = "answer" if "question" in values else "transcript"
        columns = {text_column: values.pop("text")} if "text" in values and "answer" not in values else {}
        yield ForeignRow(row_location, {"audio": clip} | columns | values, location.path.parent)


def _time(value: object, name: str, location: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DataError(f"{location}: {name} is {value!r:.40}; write seconds as a number")
    return float(value)
