"""WavCaps: 400k clips with one caption each, written by a language model from the uploaders' own words, as JSON.

Source: Mei et al. 2023 (arXiv:2303.17395), `json_files/{BBC_Sound_Effects,FreeSound,SoundBible,AudioSet_SL}/*.json`: an
object whose list `data` holds `id, caption, duration` and others; SALMONN's recipe trains on it. Some of its AudioSet
clips are in AudioCaps' test split: `build check` finds them by group.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "academic use only (captions); audio by its origin"


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One caption Example an item."""
    part = path.parent.name if path.parent.name else path.stem
    origin = SourceInfo("WavCaps", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        identifier, said = str(row["id"]).strip(), example_builder.text_field(row, "caption", where)
        if not identifier:
            raise DataError(f"{where}: id is empty")
        stem = identifier.removesuffix(".wav").removesuffix(".flac")
        is_video = "audioset" in f"{part} {path.stem}".lower()
        names = (f"{folder}{stem}{end}" for folder in (f"{part}/", f"{path.stem}/", "") for end in (".flac", ".wav"))
        yield example_builder.build_example(
            origin,
            f"wavcaps-{example_builder.short_hash(path.stem, identifier)}",
            [example_builder.find_audio(audio_root, names)],
            example_builder.pick_by_hash(CAPTION, identifier),
            [said],
            task="caption",
            category="sound",
            group=f"youtube:{stem.removeprefix('Y')[:11]}" if is_video else f"wavcaps:{path.stem}:{stem}",
            meta={"part": path.stem},
        )

    yield from example_builder.convert_rows(
        row_readers.json_rows(path, ("id", "caption"), on_skip, key="data"), make, on_skip
    )
