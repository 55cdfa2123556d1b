"""AVQA: questions about 10 s clips of VGGSound with four options, as the authors' JSON or R1-AQA's JSON lines.

Source: Yang et al. 2022 (ACM Multimedia), `train_qa.json` and `val_qa.json`; fields `id, video_name, video_id,
question_text, multi_choice, answer` (index), `question_relation` (View, Sound, Both), `question_type`; R1-AQA adds
`dataset_name` and `audio_path`. Wording as in R1-AQA: the letters `video` are replaced by `audio` in the question and
nowhere else. Nothing is filtered here (see `datasets/published/avqa.py`). Deviation: an option that is empty or repeats
another is dropped, because a manifest must not contain it (`meta.dropped` is their number); the row is skipped if the
answer is among them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    find_audio,
    string_field,
    text_field,
)
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "not stated by its authors; audio from YouTube by way of VGGSound, rights with its authors"
FIELDS = ("id", "video_name", "question_text", "multi_choice", "answer")
_CLIP_NAME = re.compile(r"(.{11})_(\d+)")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per item, with the options in their published order and the answer as text."""
    info = SourceInfo("AVQA", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        listed, index = row["multi_choice"], row["answer"]
        if not isinstance(listed, list) or not all(isinstance(option, str) for option in listed):
            raise DataError(f"{location}: multi_choice is {listed!r:.60} where a list of texts is expected")
        if type(index) is not int or not 0 <= index < len(listed) or not listed[index].strip():
            raise DataError(f"{location}: answer is {index!r}, not the index of one of the {len(listed)} options")
        choices = tuple(dict.fromkeys(option.strip() for option in listed if option.strip()))
        if len(choices) < 2:
            raise DataError(f"{location}: options {listed!r:.60}: fewer than two differ")
        question, video = (
            text_field(row, "question_text", location),
            string_field(row, "video_name", location),
        )
        meta = {"question_text": question} | {
            key: row[key] for key in ("video_name", "question_relation", "question_type") if key in row
        }
        if len(choices) < len(listed):
            meta["dropped"] = len(listed) - len(choices)
        yield build_example(
            info,
            f"avqa-{split}-{row['id']}",
            [_locate(audio_root, split, video, row)],
            question.replace("video", "audio"),
            [listed[index].strip()],
            choices=choices,
            task="multiple_choice",
            category="sound",
            group=f"youtube:{video[:11]}",
            meta=meta,
        )

    yield from convert_rows(json_rows(path, FIELDS, on_skip), convert, on_skip)


def _locate(audio_root: Path, split: str, video: str, row: Row) -> str:
    """Path of a clip; files are named `ID_000030` or, in R1-AQA's release, `ID_30`."""
    stems = [video]
    if matched := _CLIP_NAME.fullmatch(video):
        stems.append(f"{matched[1]}_{int(matched[2])}")
    names = [f"{folder}{stem}{end}" for folder in ("", f"{split}/") for stem in stems for end in (".wav", ".flac")]
    audio_path = row.get("audio_path")
    if isinstance(audio_path, str) and audio_path:
        names = [audio_path, Path(audio_path).name, *names]
    return find_audio(audio_root, names)
