"""Captions of one's own: a table (CSV, TSV) or JSON lines with the path of a clip and its caption, or a manifest.

The path is in `path`, `audio`, `file_name` or another usual name (`interchange.native_rows.COLUMN_NAMES`), the caption
in `caption`, or several in `captions` or `caption_1`, `caption_2` ... The columns `group`, `split`, `source` and
`licence` are taken where they are given. Rows of a manifest are captioned by their answers.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.detection import TABLE_SUFFIXES
from earwise.data.interchange.foreign_row import DatasetLocation
from earwise.data.interchange.native_rows import COLUMN_NAMES, SPLITS
from earwise.data.interchange.readers.csv_tables import read
from earwise.data.sources.example_builder import SourceInfo, build_example, convert_rows, pick_by_hash, short_hash
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Example

SOURCE = "own"
_CAPTION_COLUMN = re.compile(r"captions?(?:_?\d+)?")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One captioning Example per clip, with all its captions as answers.

    Raises:
        DataError: if the file cannot be read.
    """

    def convert(location: str, row: Row) -> Iterator[Example]:
        if "messages" in row:
            yield _of_manifest(manifest.from_row(row, root=audio_root, location=location), location)
        else:
            yield _of_row(row, location, audio_root, split)

    yield from convert_rows(_rows(path, on_skip), convert, on_skip)


def _rows(path: Path, on_skip: OnSkip) -> Iterator[tuple[str, Row]]:
    """Location and columns of every row."""
    if not path.name.lower().endswith(TABLE_SUFFIXES):
        yield from json_rows(path, (), on_skip)
        return
    for row in read(DatasetLocation("csv", path), ClipStore(path.parent)):
        yield row.location, row.values


def _of_manifest(example: Example, location: str) -> Example:
    if len(example.audio_paths) != 1 or not example.answer or example.choices:
        raise DataError(f"{location}: no caption of one clip; a caption is the answer of a row without options")
    return replace(example, source=example.source or SOURCE, group=example.group or example.audio_paths[0].as_posix())


def _of_row(row: Row, location: str, audio_root: Path, split: str) -> Example:
    """The Example of a row with a path and captions."""
    clip = next((row[name] for name in COLUMN_NAMES["audio"] if isinstance(row.get(name), str) and row[name]), None)
    captions = list(dict.fromkeys(_captions(row)))
    if clip is None or not captions:
        raise DataError(
            f"{location}: {'no path' if clip is None else 'no caption'}, found {', '.join(row)[:80]}; give path and "
            "caption"
        )
    given = {name: str(row[name]) for name in ("group", "source", "licence") if row.get(name)}
    row_split = SPLITS.get(str(row.get("split") or split).lower())
    if row_split is None:
        raise DataError(f"{location}: split is {row['split']!r:.40}, none of train, val, test")
    info = SourceInfo(given.get("source", SOURCE), given.get("licence", ""), audio_root, row_split)
    identifier = f"own-{short_hash(clip)}"
    return build_example(
        info, identifier, [clip], pick_by_hash(CAPTION, identifier), captions, task="caption", category="sound",
        group=given.get("group", clip),
    )  # fmt: skip


def _captions(row: Row) -> Iterator[str]:
    """The captions in a row, with single spaces."""
    for name, value in row.items():
        if _CAPTION_COLUMN.fullmatch(name.strip().lower()):
            texts: list[Any] = value if isinstance(value, list) else [value]
            yield from (" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip())
