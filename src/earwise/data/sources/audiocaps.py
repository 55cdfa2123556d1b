"""AudioCaps: captions of 10 s clips from YouTube, as CSV `audiocap_id,youtube_id,start_time,caption`.

Source: Kim et al. 2019 (NAACL); files `dataset/{train,val,test}.csv` of the authors' repository. Train has one caption
a clip, val and test five, on rows apart: the captions of a clip become the accepted answers of one Example (the whole
file is held: 50k rows). Audio is not published; the names that its users give their files are tried in turn, first the
one of ReasonAQA.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import CAPTION
from earwise.data.sources.row_readers import OnSkip
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "MIT (captions); audio from YouTube, rights with its authors"
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One caption Example a clip, in the order in which clips first occur."""
    origin = SourceInfo("AudioCaps", LICENCE, audio_root, split)
    captions: dict[tuple[str, str], list[str]] = {}
    for where, row in row_readers.csv_rows(path, COLUMNS, on_skip):
        try:
            clip = (
                example_builder.string_field(row, "youtube_id", where),
                example_builder.string_field(row, "start_time", where),
            )
            said = example_builder.text_field(row, "caption", where)
        except DataError as error:
            on_skip(str(error))
            continue
        captions.setdefault(clip, []).append(said)
    for (video, start), of_clip in captions.items():
        yield example_builder.build_example(
            origin,
            f"audiocaps-{split}-{video}-{start}",
            [locate(audio_root, split, video, start)],
            example_builder.pick_by_hash(CAPTION, video),
            of_clip,
            task="caption",
            category="sound",
            group=f"youtube:{video}",
            meta={"start_s": start},
        )


def locate(audio_root: Path, split: str, video: str, start: str) -> str:
    """Where the clip lies under `audio_root`."""
    stems = (f"Y{video}", video, f"{video}_{start}", f"Y{video}_{start}")
    folders = (f"AudioCapsLarger/{split}/", f"{split}/", "")
    return example_builder.find_audio(audio_root, (f"{folder}{stem}.wav" for folder in folders for stem in stems))
