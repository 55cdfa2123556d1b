"""Reads Kaldi data folders: `wav.scp`, `text`, and where they exist `segments` and `utt2spk`.

A line of `wav.scp` that is a command (it ends with `|`) or points into an archive (`FILE.ark:123`) is refused; commands
are never run. The speaker becomes the row's group, so that no speaker is in two splits.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import Clip, DatasetLocation, ForeignRow, toolkit_path
from earwise.errors import DataError


def read(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """One row per line of `text`.

    Raises:
        DataError: for a command or an archive in `wav.scp`, or an utterance without a recording.
    """
    folder = location.path if location.path.is_dir() else location.path.parent
    recordings = {key: (place, value) for place, key, value in _lines(folder / "wav.scp")}
    segments = {key: (place, value) for place, key, value in _optional_lines(folder / "segments")}
    speakers = {key: value for _, key, value in _optional_lines(folder / "utt2spk")}
    for place, utterance, words in _lines(folder / "text"):
        clip = _clip(utterance, recordings, segments, folder, place)
        values: dict[str, object] = {"id": utterance, "audio": clip, "transcript": words}
        if speaker := speakers.get(utterance):
            values["speaker"] = speaker
        yield ForeignRow(place, values, folder)


def _clip(
    utterance: str,
    recordings: dict[str, tuple[str, str]],
    segments: dict[str, tuple[str, str]],
    folder: Path,
    location: str,
) -> Clip:
    """The audio of an utterance: a segment of a recording, or a recording of the same name."""
    start = end = None
    recording = utterance
    if utterance in segments:
        place, value = segments[utterance]
        try:
            recording, first, last = value.split()
            start, end = float(first), None if float(last) == -1 else float(last)
        except ValueError:
            raise DataError(f"{place}: {value!r:.60} is not `RECORDING START END`") from None
        if not 0 <= start < (float("inf") if end is None else end) or end == float("inf"):
            raise DataError(
                f"{place}: a segment from {start} to {end} s; it must end after it begins (-1: the end of the file)"
            )
    elif segments:
        raise DataError(f"{location}: utterance {utterance!r} is not in {folder / 'segments'}; add it")
    if recording not in recordings:
        raise DataError(f"{location}: recording {recording!r} is not in {folder / 'wav.scp'}; add it")
    place, path = recordings[recording]
    if path.endswith("|"):
        raise DataError(f"{place}: a command, which is never run; write its output to a file and name that")
    if ".ark:" in path:
        raise DataError(f"{place}: {path!r:.60} points into an archive; write the audio to files and name those")
    return Clip(toolkit_path(folder, path), start or None, end)


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Place, key and value of every line of a file."""
    try:
        with path.open(encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, 1):
                key, _, value = line.strip().partition(" ") if "\t" not in line else line.strip().partition("\t")
                if key:
                    yield f"{path}:row {number}", key, value.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); a Kaldi folder holds wav.scp and text in UTF-8") from error


def _optional_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    return _lines(path) if path.is_file() else iter(())
