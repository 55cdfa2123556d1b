"""Reads labelled collections into label rows: dicts with `path`, `labels`, `category`, `group` and `split`.

First step of `earwise build labels`. Four formats are read: JSON lines (one clip per line; further fields are kept), a
CSV table (columns path and label; optionally split, group and others), a folder with one subfolder of clips per class,
and public collections as they are published (`labels/layouts.py`).
"""

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from earwise.audio import AUDIO_SUFFIXES
from earwise.data.readers.text_lines import csv_rows, json_lines
from earwise.datasets.labels import layouts
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

LabelRow = Mapping[str, Any]
FIELDS = (
    "path", "label", "labels", "category", "group", "split", "source", "licence", "language", "emotion", "gender",
    "text", "speaker", "caption", "family",
)  # fmt: skip
"""Fields that the builders use; other fields of a row are kept."""
LIST_NAMES = ("manifest.jsonl", "labels.jsonl")
VAL_SHARE = 0.2


def load(path: Path) -> tuple[list[LabelRow], Path]:
    """Read a collection.

    Args:
        path: A .jsonl or .csv list, a folder with `manifest.jsonl` or `labels.jsonl`, a public collection as it is
            published (`labels/layouts.py`), or a folder with one subfolder per class.
    Returns:
        Label rows sorted by path, and the folder that their paths start from. A row without `group` is a group of its
        own. For rows without `split`, a fifth of the groups, selected by their hash, is `val`, the others are `train`.
    Raises:
        DataError: if there are no clips, a row lacks path or labels, a path occurs twice, or a group is in two splits.
    """
    if path.is_dir():
        lists = [path / name for name in LIST_NAMES if (path / name).is_file()]
        if lists:
            return _complete(_read_jsonl(lists[0]), lists[0]), path
        rows = layouts.read_published(path)
        return _complete(_read_folders(path) if rows is None else rows, path), path
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; name a collection")
    if path.suffix.lower() == ".csv":
        return _complete(_read_csv(path), path), path.parent
    return _complete(_read_jsonl(path), path), path.parent


def clip_example(
    row: LabelRow, root: Path, question: str, *, name: str, content: Iterable[str], **fields: Any
) -> Example:
    """Example about one clip, with what its label row says of it.

    Args:
        row: Label row of the clip.
        root: Folder that its path starts from.
        question: What is asked.
        name: What the question is about; the middle of the id.
        content: What tells the question from others about the clip; the id ends in a hash of it.
        **fields: Fields of `Example` that the row does not have: task, answer, choices, meta.
    """
    digest = hashlib.sha256("\x1f".join((row["path"], *content)).encode()).hexdigest()[:8]
    return Example(
        id=f"{Path(row['path']).stem}-{name}-{digest}",
        turns=(Turn("user", (Audio(row["path"]), Text(question))),),
        category=row["category"],
        source=row.get("source", ""),
        licence=row.get("licence", ""),
        group=row["group"],
        split=row["split"],
        root=root,
        **fields,
    )


def rows_without(rows: Iterable[LabelRow], field: str, value: str) -> list[LabelRow]:
    """The rows whose field has another value."""
    return [row for row in rows if str(row.get(field)) != value]


def misspelled_fields(rows: Iterable[LabelRow]) -> list[str]:
    """One line for every unused field whose name is similar to a field that the builders use.

    >>> misspelled_fields([{"path": "a.wav", "license": "CC0"}, {"path": "b.wav", "license": "CC0"}])
    ["field 'license' (2 rows) is not used; did you mean 'licence'?"]
    """
    unused = Counter(name for row in rows for name in row if name not in FIELDS)
    similar = {name: difflib.get_close_matches(name, FIELDS, 1, cutoff=0.8) for name in unused}
    return [
        f"field {name!r} ({count} rows) is not used; did you mean {similar[name][0]!r}?"
        for name, count in unused.items()
        if similar[name]
    ]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a list in JSON lines."""
    rows = []
    for number, row in json_lines(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}:row {number}: {str(row)[:40]!r} is no object; write one with path and labels")
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV table; empty cells are left out."""
    rows = csv_rows(path, required=("path", "label"))
    return [{key: value for key, value in row.items() if value} for _, row in rows]


def _read_folders(path: Path) -> list[dict[str, Any]]:
    """Rows of a folder whose subfolders are named by the labels of the clips in them."""
    clips = [file for file in _files(path) if file.suffix.lower() in AUDIO_SUFFIXES and file.parent != path]
    if not clips:
        raise DataError(f"{path}: holds neither {LIST_NAMES[0]} nor class folders with audio; name a collection")
    relative_paths = [clip.relative_to(path) for clip in clips]
    return [{"path": clip.as_posix(), "label": clip.parts[0]} for clip in relative_paths]


def _files(path: Path) -> list[Path]:
    """The files below a folder, sorted. Hidden ones are left out: macOS writes `._x.wav` beside `x.wav`, which is no
    sound.

    Raises:
        DataError: for a name that is no UTF-8 text, which no manifest can hold.
    """
    files = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if str(name).encode("utf-8", "replace") != os.fsencode(name):  # decoded with surrogates
            raise DataError(f"{path}: the file name {os.fsencode(name)!r} is no UTF-8 text; rename the file")
        if not any(part.startswith(".") for part in name.parts) and file.is_file():
            files.append(file)
    return files


def unused_files(path: Path, rows: Iterable[LabelRow]) -> str | None:
    """A line about the files of a folder of class folders that are no row; None for another collection, or if all are.

    Args:
        path: The collection.
        rows: Its rows.
    """
    used = {row["path"]: (row.get("labels") or [row.get("label")])[0] for row in rows}
    if not path.is_dir() or any(Path(name).parts[0] != label for name, label in used.items()):
        return None
    unused = [file.relative_to(path) for file in _files(path) if file.relative_to(path).as_posix() not in used]
    if not unused:
        return None
    endings = Counter(file.suffix.lower() or "no ending" for file in unused)
    counts = ", ".join(f"{count} with {ending}" for ending, count in endings.most_common(5))
    return f"{len(unused)} files in {path} are not used ({counts}; the first is {unused[0]})"


def _complete(rows: Iterable[dict[str, Any]], path: Path) -> list[LabelRow]:
    """Check the rows of the collection at `path`, and fill in category, group and split."""
    complete: dict[str, LabelRow] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        location = f"{path}:row {number}"
        clip, labels = row.get("path"), row.get("labels") or [row.get("label")]
        if not isinstance(clip, str) or not clip:
            raise DataError(f"{location}: path is {clip!r}; every row needs the path of a clip")
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise DataError(f"{location}: labels is {labels!r}; every row needs a label, or a list of them")
        if clip in complete:
            raise DataError(f"{location}: path {clip!r} occurs twice; list every clip once")
        group = row.get("group") or clip
        split = row.get("split") or ("val" if _hash_fraction(str(group)) < VAL_SHARE else "train")
        if splits.setdefault(group, split) != split:
            raise DataError(
                f"{location}: group {group!r} is in {splits[group]} and {split}; a group must not cross splits"
            )
        checked = {"labels": labels, "category": row.get("category") or "sound", "group": group, "split": split}
        if not row.get("category"):
            checked["category_assumed"] = True  # so that no question asks whether it is speech, music or a sound
        complete[clip] = {key: value for key, value in row.items() if key != "label"} | checked
    if not complete:
        raise DataError(f"{path}: lists no clips; write at least one row")
    return [complete[clip] for clip in sorted(complete)]


def _hash_fraction(group: str) -> float:
    """Hash of a group as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
