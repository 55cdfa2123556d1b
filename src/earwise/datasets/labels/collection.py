"""Labelled collections on disk into label rows: plain dicts with at least `path labels category group split`.

First step of `earwise build labels`. Four forms are read: JSON lines (one clip a line, any further field kept), a CSV
table (columns path and label; split and group if there), a folder with one folder of clips per class, and public
collections as they are published (`build/layouts.py`).
"""

import csv
import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from earwise.datasets.labels import layouts
from earwise.errors import DataError

LabelRow = Mapping[str, Any]
FIELDS = (
    "path", "label", "labels", "category", "group", "split", "source", "licence", "language", "emotion", "gender",
    "text", "speaker", "caption", "family",
)  # fmt: skip
"""What builders read of a row; anything else is kept and not used."""
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})
LIST_NAMES = ("manifest.jsonl", "labels.jsonl")
VAL_SHARE = 0.2


def load(path: Path) -> tuple[list[LabelRow], Path]:
    """Read a collection.

    Args:
        path: A .jsonl or .csv list, a folder with `manifest.jsonl` or `labels.jsonl`, a public collection as it is
            published (`build/layouts.py`), or a folder of class folders.
    Returns:
        Rows sorted by path, and the folder their paths start from. A clip without `group` is its own group; where no
        split is given, a fifth of the groups, chosen by their hash, is `val`.
    Raises:
        DataError: if nothing is found, a row lacks path or labels, a path occurs twice, or a group is in two splits.
    """
    if path.is_dir():
        lists = [path / name for name in LIST_NAMES if (path / name).is_file()]
        if lists:
            return _complete(_jsonl(lists[0]), lists[0]), path
        published = layouts.detect(path)
        return _complete(_folders(path) if published is None else published, path), path
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; name a collection")
    if path.suffix.lower() == ".csv":
        return _complete(_csv(path), path), path.parent
    return _complete(_jsonl(path), path), path.parent


def misspelt(rows: Iterable[LabelRow]) -> list[str]:
    """A line for every field that no builder reads but that looks like one it does.

    >>> misspelt([{"path": "a.wav", "license": "CC0"}, {"path": "b.wav", "license": "CC0"}])
    ["field 'license' (2 rows) is not used; did you mean 'licence'?"]
    """
    strange = Counter(name for row in rows for name in row if name not in FIELDS)
    near = {name: difflib.get_close_matches(name, FIELDS, 1, cutoff=0.8) for name in strange}
    return [
        f"field {name!r} ({count} rows) is not used; did you mean {near[name][0]!r}?"
        for name, count in strange.items()
        if near[name]
    ]


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:row {number}: not JSON ({error}); write one clip a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:row {number}: {line[:40]!r} is no object; write one with path and labels")
        rows.append(row)
    return rows


def _csv(path: Path) -> list[dict[str, Any]]:
    table = csv.DictReader(_text(path).splitlines())
    if missing := {"path", "label"} - set(table.fieldnames or ()):
        raise DataError(f"{path}: column {min(missing)!r} is missing, found {table.fieldnames}; give path and label")
    return [{key: value for key, value in row.items() if key is not None and value} for row in table]


def _folders(path: Path) -> list[dict[str, Any]]:
    clips = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.parent != path)
    if not clips:
        raise DataError(f"{path}: holds neither {LIST_NAMES[0]} nor class folders with audio; name a collection")
    relative = [clip.relative_to(path) for clip in clips]
    return [{"path": clip.as_posix(), "label": clip.parts[0]} for clip in relative]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _complete(rows: Iterable[dict[str, Any]], path: Path) -> list[LabelRow]:
    done: dict[str, LabelRow] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}:row {number}"
        clip, labels = row.get("path"), row.get("labels") or [row.get("label")]
        if not isinstance(clip, str) or not clip:
            raise DataError(f"{where}: path is {clip!r}; every row needs the path of a clip")
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise DataError(f"{where}: labels is {labels!r}; every row needs a label, or a list of them")
        if clip in done:
            raise DataError(f"{where}: path {clip!r} occurs twice; list every clip once")
        group = row.get("group") or clip
        split = row.get("split") or ("val" if _share(str(group)) < VAL_SHARE else "train")
        if splits.setdefault(group, split) != split:
            raise DataError(
                f"{where}: group {group!r} is in {splits[group]} and {split}; a group must not cross splits"
            )
        own = {"labels": labels, "category": row.get("category") or "sound", "group": group, "split": split}
        if not row.get("category"):
            own["category_assumed"] = True  # so nobody may ask whether it is speech, music or a sound
        done[clip] = {key: value for key, value in row.items() if key != "label"} | own
    if not done:
        raise DataError(f"{path}: lists no clips; write at least one row")
    return [done[clip] for clip in sorted(done)]


def _share(group: str) -> float:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
