"""AVQA: questions about 10 s clips of VGGSound with four options, as the authors' JSON or R1-AQA's JSON lines.

Source: Yang et al. 2022 (ACM Multimedia), `train_qa.json` and `val_qa.json`; fields `id, video_name, video_id,
question_text, multi_choice, answer` (index), `question_relation` (View, Sound, Both), `question_type`; R1-AQA adds
`dataset_name` and `audio_path`. Wording as in R1-AQA: the letters `video` become `audio` in the question and nowhere
else. Nothing is filtered here, see `build/avqa.py`. Deviation: an option that is empty or repeats another is left out,
since the manifest refuses it (`meta.dropped` counts them); the row is bad if the answer is among them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "not stated by its authors; audio from YouTube by way of VGGSound, rights with its authors"
FIELDS = ("id", "video_name", "question_text", "multi_choice", "answer")
_NAME = re.compile(r"(.{11})_(\d+)")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example an item, options in their order, the answer as text."""
    origin = SourceInfo("AVQA", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        listed, index = row["multi_choice"], row["answer"]
        if not isinstance(listed, list) or not all(isinstance(option, str) for option in listed):
            raise DataError(f"{where}: multi_choice is {listed!r:.60} where a list of texts is expected")
        if type(index) is not int or not 0 <= index < len(listed) or not listed[index].strip():
            raise DataError(f"{where}: answer is {index!r}, no number of one of the {len(listed)} options")
        choices = tuple(dict.fromkeys(option.strip() for option in listed if option.strip()))
        if len(choices) < 2:
            raise DataError(f"{where}: options {listed!r:.60}: fewer than two differ")
        asked, video = (
            example_builder.text_field(row, "question_text", where),
            example_builder.string_field(row, "video_name", where),
        )
        meta = {"question_text": asked} | {
            key: row[key] for key in ("video_name", "question_relation", "question_type") if key in row
        }
        if len(choices) < len(listed):
            meta["dropped"] = len(listed) - len(choices)
        yield example_builder.build_example(
            origin,
            f"avqa-{split}-{row['id']}",
            [_locate(audio_root, split, video, row)],
            asked.replace("video", "audio"),
            [listed[index].strip()],
            choices=choices,
            task="multiple_choice",
            category="sound",
            group=f"youtube:{video[:11]}",
            meta=meta,
        )

    yield from example_builder.convert_rows(row_readers.json_rows(path, FIELDS, on_skip), make, on_skip)


def _locate(audio_root: Path, split: str, video: str, row: Row) -> str:
    """Clips are named `ID_000030` or, in R1-AQA's release, `ID_30`."""
    stems = [video]
    if matched := _NAME.fullmatch(video):
        stems.append(f"{matched[1]}_{int(matched[2])}")
    names = [f"{folder}{stem}{end}" for folder in ("", f"{split}/") for stem in stems for end in (".wav", ".flac")]
    given = row.get("audio_path")
    if isinstance(given, str) and given:
        names = [given, Path(given).name, *names]
    return example_builder.find_audio(audio_root, names)
