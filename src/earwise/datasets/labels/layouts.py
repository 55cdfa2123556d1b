"""Reads public collections as they are published: ESC-50, UrbanSound8K, FSD50K, VocalSound, RAVDESS.

Used by `labels/collection.py` for a folder without a list of clips. A folder is recognised by a file, or by the pattern
of the file names, that only this collection has. Paths are relative to the folder. `group`, the unit that must not
cross splits, follows the documentation of each collection: the Freesound recording, or the speaker. If a collection is
published in folds, the last fold is `val`. Sources: the README files and CSV headers of the collections.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.data.readers.text_lines import csv_rows, read_text
from earwise.errors import DataError

Rows = Iterable[dict[str, Any]]

ESC50_CSV = Path("meta", "esc50.csv")
URBANSOUND_CSV = Path("metadata", "UrbanSound8K.csv")
FSD50K_CSV = Path("FSD50K.ground_truth", "dev.csv")
VOCALSOUND = re.compile(
    r"(?P<speaker>[fm]\d{4})_(?P<take>\d+)_(?P<label>laughter|sigh|cough|throatclearing|sneeze|sniff)"
)
RAVDESS = re.compile(r"03-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("Kids are talking by the door.", "Dogs are sitting by the door.")
MUSIC_LABEL = "Music"  # FSD50K lists all ancestors of a label


def read_published(folder: Path) -> list[dict[str, Any]] | None:
    """Label rows of a folder that contains one of the public collections; None for any other folder.

    Raises:
        DataError: if the collection's table of clips lacks a column, or the collection has no clips.
    """
    for is_collection, read_rows in _LAYOUTS:
        if is_collection(folder):
            rows = sorted(read_rows(folder), key=lambda row: row["path"])
            if not rows:
                raise DataError(f"{folder}: looks like {read_rows.__name__[1:]} but lists no clips; fetch it again")
            return rows
    return None


def _esc50(folder: Path) -> Rows:
    """`meta/esc50.csv`: filename, fold (1-5), target, category, esc10, src_file, take. A recording is in one fold."""
    for row in _table(folder / ESC50_CSV, ("filename", "fold", "category", "src_file")):
        yield {
            "path": f"audio/{row['filename']}",
            "labels": [row["category"]],
            "group": f"freesound:{row['src_file']}",
            "split": "val" if row["fold"] == "5" else "train",
            "source": "ESC-50",
            "licence": "CC BY-NC 3.0",
        }


def _urbansound8k(folder: Path) -> Rows:
    """`metadata/UrbanSound8K.csv`: slice_file_name, fsID, start, end, salience (2: background), fold (1-10), class."""
    for row in _table(folder / URBANSOUND_CSV, ("slice_file_name", "fsID", "fold", "class")):
        yield {
            "path": f"audio/fold{row['fold']}/{row['slice_file_name']}",
            "labels": [row["class"]],
            "group": f"freesound:{row['fsID']}",
            "split": "val" if row["fold"] == "10" else "train",
            "source": "UrbanSound8K",
            "licence": "CC BY-NC 3.0",
            "in_background": row.get("salience") == "2",
        }


def _fsd50k(folder: Path) -> Rows:
    """`FSD50K.ground_truth/{dev,eval}.csv`: fname, labels (separated by commas), mids, and in dev also split.

    Licence and uploader of each clip are read from `FSD50K.metadata/{dev,eval}_clips_info_FSD50K.json`, if it exists.
    All labels are kept; questions ask only for the first, which is the most specific.
    """
    for part in ("dev", "eval"):
        table = folder / "FSD50K.ground_truth" / f"{part}.csv"
        if not table.is_file():
            continue
        clip_info = _json(folder / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json")
        for row in _table(table, ("fname", "labels")):
            info = clip_info.get(row["fname"], {})
            names = [label.replace("_and_", " and ").lower() for label in row["labels"].split(",")]
            yield {
                "path": f"FSD50K.{part}_audio/{row['fname']}.wav",
                "labels": names,
                "category": "music" if MUSIC_LABEL in row["labels"].split(",") else "sound",
                "group": f"freesound:{row['fname']}",
                "split": "test" if part == "eval" else row.get("split") or "train",
                "source": "FSD50K",
                "licence": str(info.get("license") or "CC BY 4.0 (each clip has its own)"),
            } | ({"uploader": str(info["uploader"])} if info.get("uploader") else {})


def _vocalsound(folder: Path) -> Rows:
    """`audio_16k/f0003_0_cough.wav`: sex and number of the speaker, number of the collection, sound.

    `datafiles/{tr,val,te}.json` (`data`: list of `wav`) state the splits; without them they follow from a hash.
    """
    splits = {
        Path(str(entry.get("wav", ""))).name: split
        for name, split in (("tr", "train"), ("val", "val"), ("te", "test"))
        for entry in _json(folder / "datafiles" / f"{name}.json").get("data", ())
    }
    for path in _wav_files(folder):
        if match := VOCALSOUND.fullmatch(path.stem):
            yield {
                "path": path.relative_to(folder).as_posix(),
                "labels": [match["label"].replace("throatclearing", "throat_clearing")],
                "category": "sound",
                "group": f"vocalsound:{match['speaker']}",
                "speaker": f"vocalsound_{match['speaker']}",
                "voice": "female" if match["speaker"][0] == "f" else "male",
                "source": "VocalSound",
                "licence": "CC BY-SA 4.0",
            } | ({"split": splits[path.name]} if path.name in splits else {})


def _ravdess(folder: Path) -> Rows:
    """`03-01-06-01-02-01-12.wav`: modality, channel (speech, song), emotion, intensity, statement, repetition, actor.

    Actors with odd numbers are male. Songs are left out, because they have the same words as the speech.
    """
    for path in _wav_files(folder):
        match = RAVDESS.fullmatch(path.stem)
        if match and match[1] == "01":
            _, emotion, intensity, statement, repetition, actor = match.groups()
            yield {
                "path": path.relative_to(folder).as_posix(),
                "labels": ["speech"],
                "category": "speech",
                "group": f"ravdess:{actor}",
                "speaker": f"ravdess_{actor}",
                "gender": "male" if int(actor) % 2 else "female",
                "emotion": EMOTIONS[int(emotion) - 1],
                "intensity": ("normal", "strong")[int(intensity) - 1],
                "text": STATEMENTS[int(statement) - 1],
                "language": "en",
                "take": int(repetition),
                "source": "RAVDESS",
                "licence": "CC BY-NC-SA 4.0",
            }


def _contains(file: Path) -> Callable[[Path], bool]:
    """Test for folders that contain a file."""
    return lambda folder: (folder / file).is_file()


def _names_match(pattern: re.Pattern[str]) -> Callable[[Path], bool]:
    """Test for folders in which the names of the first hundred audio files match a pattern."""

    def is_collection(folder: Path) -> bool:
        stems = [path.stem for _, path in zip(range(100), _wav_files(folder), strict=False)]
        return bool(stems) and all(pattern.fullmatch(stem) for stem in stems)

    return is_collection


_LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Rows]], ...] = (
    (_contains(ESC50_CSV), _esc50),
    (_contains(URBANSOUND_CSV), _urbansound8k),
    (_contains(FSD50K_CSV), _fsd50k),
    (_names_match(VOCALSOUND), _vocalsound),
    (_names_match(RAVDESS), _ravdess),
)


def _wav_files(folder: Path) -> Iterator[Path]:
    """All WAV files below a folder, without hidden files."""
    return (path for path in folder.rglob("*.wav") if not path.name.startswith("."))


def _table(path: Path, required: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Rows of a CSV table that must have the columns `required`, none of them empty."""
    for number, row in csv_rows(path, delimiter=",", required=required):
        if any(not row[name] for name in required):
            raise DataError(f"{path}:row {number}: a field of {', '.join(required)} is empty; fetch it again")
        yield row


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the published file") from error
    return value if isinstance(value, dict) else {}
