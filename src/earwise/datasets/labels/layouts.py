"""Public collections as they are published, into label rows: ESC-50, UrbanSound8K, FSD50K, VocalSound, RAVDESS.

Tried by `build/collection.py` on a folder without a list of its own; a folder is recognised by the file or the file
names that only this collection has. Paths are relative to the folder; `group` is what must not cross splits, by the
collections' own documentation: the Freesound recording, or the speaker. Where a collection publishes folds, the last is
`val`. Sources: the collections' README files and CSV headers.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from earwise.errors import DataError

Found = Iterable[dict[str, Any]]

ESC50_CSV = Path("meta", "esc50.csv")
URBANSOUND_CSV = Path("metadata", "UrbanSound8K.csv")
FSD50K_CSV = Path("FSD50K.ground_truth", "dev.csv")
VOCALSOUND = re.compile(
    r"(?P<speaker>[fm]\d{4})_(?P<take>\d+)_(?P<label>laughter|sigh|cough|throatclearing|sneeze|sniff)"
)
RAVDESS = re.compile(r"03-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("Kids are talking by the door.", "Dogs are sitting by the door.")
MUSIC_LABEL = "Music"  # FSD50K's labels come with all that are above them


def detect(folder: Path) -> list[dict[str, Any]] | None:
    """Rows of a folder that is laid out as one of the collections; None if it is none.

    Raises:
        DataError: if the collection's own list lacks a column, or holds no row.
    """
    for is_this, read in _LAYOUTS:
        if is_this(folder):
            rows = sorted(read(folder), key=lambda row: row["path"])
            if not rows:
                raise DataError(f"{folder}: looks like {read.__name__[1:]} but lists no clips; fetch it again")
            return rows
    return None


def _esc50(folder: Path) -> Found:
    """`meta/esc50.csv`: filename, fold (1-5), target, category, esc10, src_file, take; a source is in one fold."""
    for row in _table(folder / ESC50_CSV, ("filename", "fold", "category", "src_file")):
        yield {
            "path": f"audio/{row['filename']}",
            "labels": [row["category"]],
            "group": f"freesound:{row['src_file']}",
            "split": "val" if row["fold"] == "5" else "train",
            "source": "ESC-50",
            "licence": "CC BY-NC 3.0",
        }


def _urbansound8k(folder: Path) -> Found:
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


def _fsd50k(folder: Path) -> Found:
    """`FSD50K.ground_truth/{dev,eval}.csv`: fname, labels (parted by commas), mids, and in dev also split.

    Licence and uploader of each clip are in `FSD50K.metadata/{dev,eval}_clips_info_FSD50K.json`, if it is there. All
    labels are kept; only the first, the most specific, is asked for.
    """
    for part in ("dev", "eval"):
        listed = folder / "FSD50K.ground_truth" / f"{part}.csv"
        if not listed.is_file():
            continue
        known = _json(folder / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json")
        for row in _table(listed, ("fname", "labels")):
            info = known.get(row["fname"], {})
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


def _vocalsound(folder: Path) -> Found:
    """`audio_16k/f0003_0_cough.wav`: sex and number of the speaker, number of the collection, sound.

    `datafiles/{tr,val,te}.json` (`data`: list of `wav`) say which split; without them a speaker's hash does.
    """
    splits = {
        Path(str(entry.get("wav", ""))).name: split
        for name, split in (("tr", "train"), ("val", "val"), ("te", "test"))
        for entry in _json(folder / "datafiles" / f"{name}.json").get("data", ())
    }
    for path in _audio(folder):
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


def _ravdess(folder: Path) -> Found:
    """`03-01-06-01-02-01-12.wav`: modality, channel (speech, song), emotion, intensity, statement, repetition, actor.

    Actors with odd numbers are men. Songs are left out: their emotion is sung, their words are the same.
    """
    for path in _audio(folder):
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


def _has(listed: Path) -> Callable[[Path], bool]:
    return lambda folder: (folder / listed).is_file()


def _names(pattern: re.Pattern[str]) -> Callable[[Path], bool]:
    """True of a folder whose audio files are, all of the first hundred, named so."""

    def is_this(folder: Path) -> bool:
        first = [path.stem for _, path in zip(range(100), _audio(folder), strict=False)]
        return bool(first) and all(pattern.fullmatch(stem) for stem in first)

    return is_this


_LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Found]], ...] = (
    (_has(ESC50_CSV), _esc50),
    (_has(URBANSOUND_CSV), _urbansound8k),
    (_has(FSD50K_CSV), _fsd50k),
    (_names(VOCALSOUND), _vocalsound),
    (_names(RAVDESS), _ravdess),
)


def _audio(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.wav") if not path.name.startswith("."))


def _table(path: Path, needed: Iterable[str]) -> Iterator[Mapping[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines)
            if missing := set(needed) - set(table.fieldnames or ()):
                raise DataError(
                    f"{path}: column {min(missing)!r} is missing, found {table.fieldnames}; fetch the published file"
                )
            for number, row in enumerate(table, 2):
                if any(not row.get(name) for name in needed):
                    raise DataError(f"{path}:line {number}: a field of {', '.join(needed)} is empty; fetch it again")
                yield {key: value for key, value in row.items() if key is not None and isinstance(value, str)}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the published file") from error


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the published file") from error
    return value if isinstance(value, dict) else {}
