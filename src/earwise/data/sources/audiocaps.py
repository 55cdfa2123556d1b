"""AudioCaps: captions of 10 s clips from YouTube, as CSV `audiocap_id,youtube_id,start_time,caption`.

Source: Kim et al. 2019 (NAACL); files `dataset/{train,val,test}.csv` of the authors' repository. The training split has
one caption per clip, val and test have five, each in a row of its own; the captions of a clip become the accepted
answers of one Example (the whole file is held in memory: 50k rows). The audio is not published. The file names that are
in use for the clips are tried one after the other, ReasonAQA's first.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    find_audio,
    pick_by_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip, csv_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "MIT (captions); audio from YouTube, rights with its authors"
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One caption Example per clip, in the order in which the clips first occur."""
    info = SourceInfo("AudioCaps", LICENCE, audio_root, split)
    captions: dict[tuple[str, str], list[str]] = {}
    for location, row in csv_rows(path, COLUMNS, on_skip):
        try:
            key = (
                string_field(row, "youtube_id", location),
                string_field(row, "start_time", location),
            )
            caption = text_field(row, "caption", location)
        except DataError as error:
            on_skip(str(error))
            continue
        captions.setdefault(key, []).append(caption)
    for (video, start), clip_captions in captions.items():
        yield build_example(
            info,
            f"audiocaps-{split}-{video}-{start}",
            [locate(audio_root, split, video, start)],
            pick_by_hash(CAPTION, video),
            clip_captions,
            task="caption",
            category="sound",
            group=f"youtube:{video}",
            meta={"start_s": start},
        )


def locate(audio_root: Path, split: str, video: str, start: str) -> str:
    """Path of a clip relative to `audio_root`."""
    stems = (f"Y{video}", video, f"{video}_{start}", f"Y{video}_{start}")
    folders = (f"AudioCapsLarger/{split}/", f"{split}/", "")
    return find_audio(audio_root, (f"{folder}{stem}.wav" for folder in folders for stem in stems))
