"""Clotho: five captions for each clip (15 to 30 s, from Freesound), as CSV `file_name,caption_1 .. caption_5`.

Source: Drossos et al. 2020 (ICASSP), version 2.1; files `clotho_captions_{development,validation,evaluation}.csv`.
Some file names contain HTML entities in the table but not on disk, or the other way round; both forms are tried.
"""

import html
from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    find_audio,
    pick_by_hash,
    short_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip, Row, csv_rows
from earwise.types import Example

LICENCE = "Tampere University licence, not commercial, with attribution (captions); Freesound licence of each clip"
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
FOLDERS = {"train": "development", "val": "validation", "test": "evaluation"}


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One caption Example per clip, with its captions as accepted answers; a row with an empty caption is skipped."""
    info = SourceInfo("Clotho", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        clip = string_field(row, "file_name", location)
        captions = [text_field(row, key, location) for key in CAPTIONS]
        yield build_example(
            info,
            f"clotho-{split}-{short_hash(clip)}",
            [locate(audio_root, split, clip)],
            pick_by_hash(CAPTION, clip),
            captions,
            task="caption",
            category="sound",
            group=group(clip),
        )

    first_rows: dict[str, str] = {}
    for location, row in csv_rows(path, ("file_name", *CAPTIONS), on_skip):
        clip = row["file_name"]
        if clip in first_rows:
            on_skip(f"{location}: file_name {clip!r} is already in {first_rows[clip]}")
            continue
        first_rows[clip] = location.rpartition(":")[2]
        yield from convert_rows([(location, row)], convert, on_skip)


def locate(audio_root: Path, split: str, clip: str) -> str:
    """Path of a clip relative to `audio_root`."""
    names = (clip, html.unescape(clip), html.escape(clip), clip.strip())
    folders = (f"ClothoV21/{FOLDERS.get(split, split)}/", f"{FOLDERS.get(split, split)}/", f"{split}/", "")
    return find_audio(audio_root, (folder + name for folder in folders for name in names))


def group(clip: str) -> str:
    """Group (the unit that must not cross splits) of a clip of Clotho or ClothoAQA, which have the same clips."""
    return f"clotho:{html.unescape(clip).strip()}"
