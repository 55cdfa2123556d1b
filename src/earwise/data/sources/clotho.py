"""Clotho: five captions for each clip of 15 to 30 s from Freesound, as CSV `file_name,caption_1 .. caption_5`.

Source: Drossos et al. 2020 (ICASSP), version 2.1; files `clotho_captions_{development,validation,evaluation}.csv`.
Some names hold HTML entities in the table and not on disk, or the other way round: both are tried.
"""

import html
from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.types import Example

LICENCE = "Tampere University licence, not commercial, with attribution (captions); Freesound licence of each clip"
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
FOLDERS = {"train": "development", "val": "validation", "test": "evaluation"}


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One caption Example a clip, its captions the accepted answers; an empty caption makes the row a bad one."""
    origin = SourceInfo("Clotho", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        clip = example_builder.string_field(row, "file_name", where)
        said = [example_builder.text_field(row, key, where) for key in CAPTIONS]
        yield example_builder.build_example(
            origin,
            f"clotho-{split}-{example_builder.short_hash(clip)}",
            [locate(audio_root, split, clip)],
            example_builder.pick_by_hash(CAPTION, clip),
            said,
            task="caption",
            category="sound",
            group=group(clip),
        )

    seen: dict[str, str] = {}
    for where, row in row_readers.csv_rows(path, ("file_name", *CAPTIONS), on_skip):
        clip = row["file_name"]
        if clip in seen:
            on_skip(f"{where}: file_name {clip!r} stands in {seen[clip]} already")
            continue
        seen[clip] = where.rpartition(":")[2]
        yield from example_builder.convert_rows([(where, row)], make, on_skip)


def locate(audio_root: Path, split: str, clip: str) -> str:
    """Where the clip lies under `audio_root`."""
    names = (clip, html.unescape(clip), html.escape(clip), clip.strip())
    folders = (f"ClothoV21/{FOLDERS.get(split, split)}/", f"{FOLDERS.get(split, split)}/", f"{split}/", "")
    return example_builder.find_audio(audio_root, (folder + name for folder in folders for name in names))


def group(clip: str) -> str:
    """The unit that must not cross splits; shared with ClothoAQA, whose clips are Clotho's."""
    return f"clotho:{html.unescape(clip).strip()}"
