"""WavCaps: 400k clips with one caption each, written by a language model from the uploaders' descriptions, as JSON.

Source: Mei et al. 2023 (arXiv:2303.17395), `json_files/{BBC_Sound_Effects,FreeSound,SoundBible,AudioSet_SL}/*.json`: an
object whose list `data` holds `id, caption, duration` and others; SALMONN trains on it. Some of its AudioSet clips are
in AudioCaps' test split: `earwise build check` finds them by their group.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    find_audio,
    pick_by_hash,
    short_hash,
    text_field,
)
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "academic use only (captions); audio by its origin"


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One caption Example per item."""
    part = path.parent.name if path.parent.name else path.stem
    info = SourceInfo("WavCaps", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        identifier, caption = str(row["id"]).strip(), text_field(row, "caption", location)
        if not identifier:
            raise DataError(f"{location}: id is empty")
        stem = identifier.removesuffix(".wav").removesuffix(".flac")
        is_video = "audioset" in f"{part} {path.stem}".lower()
        names = (f"{folder}{stem}{end}" for folder in (f"{part}/", f"{path.stem}/", "") for end in (".flac", ".wav"))
        yield build_example(
            info,
            f"wavcaps-{short_hash(path.stem, identifier)}",
            [find_audio(audio_root, names)],
            pick_by_hash(CAPTION, identifier),
            [caption],
            task="caption",
            category="sound",
            group=f"youtube:{stem.removeprefix('Y')[:11]}" if is_video else f"wavcaps:{path.stem}:{stem}",
            meta={"part": path.stem},
        )

    yield from convert_rows(json_rows(path, ("id", "caption"), on_skip, key="data"), convert, on_skip)
