"""Reads lhotse manifests: cuts, or recordings with supervisions, as JSON lines (`.jsonl`, `.jsonl.gz`).

One row per supervision: the part of the recording that it spans, and its text. Recordings must lie in files; those that
are made by a command are refused and never run.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import Clip, DatasetLocation, ForeignRow, toolkit_path
from earwise.data.interchange.readers.json_objects import json_objects
from earwise.errors import DataError

EQUAL_S = 5e-3
"""A part that begins or ends this close to the ends of its recording is taken to reach them, in seconds."""
Row = Mapping[str, Any]


def find_file(folder: Path, stem: str) -> Path | None:
    """The file `STEM.jsonl[.gz]` of a folder, or one whose name contains the stem; None if there is none."""
    names = (f"{stem}.jsonl", f"{stem}.jsonl.gz")
    exact = next((folder / name for name in names if (folder / name).is_file()), None)
    return exact or next(iter(sorted((*folder.glob(f"*{stem}*.jsonl"), *folder.glob(f"*{stem}*.jsonl.gz")))), None)


def read(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """One row per supervision of a folder, a file of cuts, or a file of supervisions with its recordings beside it.

    Raises:
        DataError: if recordings are missing, made by a command, mixed from several, or not in files.
    """
    path = location.path
    cuts = find_file(path, "cuts") if path.is_dir() else path
    if cuts is not None and "supervisions" not in cuts.name:
        for row_location, cut in json_objects(cuts):
            yield from _cut_rows(row_location, cut, cuts.parent)
        return
    folder = path if path.is_dir() else path.parent
    recordings, supervisions = (
        find_file(folder, "recordings"),
        path if path.is_file() else find_file(folder, "supervisions"),
    )
    if recordings is None or supervisions is None:
        raise DataError(f"{path}: needs cuts, or recordings and supervisions (.jsonl or .jsonl.gz) beside each other")
    by_id = {str(row.get("id")): row for _, row in json_objects(recordings)}
    for row_location, supervision in json_objects(supervisions):
        recording = by_id.get(str(supervision.get("recording_id")))
        if recording is None:
            raise DataError(f"{row_location}: recording {supervision.get('recording_id')!r} is not in {recordings}")
        start = _number(supervision, "start", row_location)
        yield _row(row_location, supervision, recording, start, recordings.parent)


def _cut_rows(location: str, cut: Row, root: Path) -> Iterator[ForeignRow]:
    recording = cut.get("recording")
    if cut.get("type") not in ("MonoCut", "MultiCut", None) or not isinstance(recording, Mapping):
        raise DataError(
            f"{location}: a cut of type {cut.get('type')!r} without one recording of its own; write it to audio with "
            "`CutSet.save_audios` first"
        )
    cut_start = _number(cut, "start", location)
    for supervision in cut.get("supervisions") or [
        {"id": cut.get("id"), "start": 0.0, "duration": cut.get("duration")}
    ]:
        start = cut_start + _number(supervision, "start", location)
        yield _row(location, supervision, recording, start, root)


def _row(location: str, supervision: Row, recording: Row, start: float, root: Path) -> ForeignRow:
    """The row of a supervision whose part of the recording begins at `start` seconds."""
    end, length = start + _number(supervision, "duration", location), _number(recording, "duration", location)
    clip = Clip(
        toolkit_path(root, _source(location, recording)),
        start if start > EQUAL_S else None,
        end if end < length - EQUAL_S else None,
    )
    custom = supervision.get("custom")
    values: dict[str, Any] = {"id": supervision.get("id"), "audio": clip}
    values |= dict(custom) if isinstance(custom, Mapping) else {}
    text = supervision.get("text")
    values |= {"answer" if "question" in values else "transcript": text} if "answer" not in values else {}
    values |= {name: supervision.get(name) for name in ("speaker", "gender") if supervision.get(name)}
    if supervision.get("language"):
        values["spoken_language"] = supervision["language"]
    return ForeignRow(location, values, root)


def _source(location: str, recording: Row) -> str:
    """Path of the file of a recording."""
    sources = recording.get("sources")
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], Mapping):
        raise DataError(
            f"{location}: recording {recording.get('id')!r} has no single source; mix it into one file first"
        )
    kind, source = sources[0].get("type"), sources[0].get("source")
    if kind == "command":
        raise DataError(
            f"{location}: recording {recording.get('id')!r} is made by a command, which is never run; write it to a "
            "file"
        )
    if kind != "file" or not isinstance(source, str):
        raise DataError(
            f"{location}: recording {recording.get('id')!r} is of type {kind!r}, not a file; write it to one"
        )
    return source


def _number(row: Row, name: str, location: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DataError(f"{location}: {name} is {value!r:.40} where seconds are expected; is this a lhotse manifest?")
    return float(value)
