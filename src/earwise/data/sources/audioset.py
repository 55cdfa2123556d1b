"""AudioSet: the sound classes of 10 s YouTube clips, as CSV `YTID, start_seconds, end_seconds, positive_labels`.

Source: Gemmeke et al. 2017 (ICASSP), `{balanced_train,unbalanced_train,eval}_segments.csv`; the names of the classes
come from `class_labels_indices.csv`, which must be in the same folder. The set has two million rows, so none are held
in memory. A clip has several classes in no order of importance: the answer to the open question names all of them,
`meta.labels` lists them, and `--choices` asks for one of them.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    find_audio,
    pick_by_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import TAGS
from earwise.data.sources.row_readers import OnSkip, Row, csv_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY 4.0 (labels); audio from YouTube, rights with its authors"
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
CLASS_TABLE = "class_labels_indices.csv"


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per clip, task `open`, with every class in `meta.labels`."""
    class_names = _class_names(path.with_name(CLASS_TABLE), on_skip)
    info = SourceInfo("AudioSet", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        video, start = (
            string_field(row, "YTID", location),
            string_field(row, "start_seconds", location),
        )
        class_ids = [class_id.strip() for class_id in string_field(row, "positive_labels", location).split(",")]
        if unknown := [class_id for class_id in class_ids if class_id not in class_names]:
            raise DataError(f"{location}: class {unknown[0]!r} is none of {CLASS_TABLE}")
        try:
            start_s = float(start)
        except ValueError:
            raise DataError(f"{location}: start_seconds is {start!r} where a number is expected") from None
        labels = [class_names[class_id] for class_id in class_ids]
        stems = (f"Y{video}", video, f"{video}_{start_s:g}", f"{video}_{round(start_s * 1000)}")
        folders = (f"{path.stem}/", "", f"{path.stem.removesuffix('_segments')}/")
        files = (f"{folder}{stem}{end}" for folder in folders for stem in stems for end in (".wav", ".flac"))
        yield build_example(
            info,
            f"audioset-{split}-{video}-{start_s:g}",
            [find_audio(audio_root, files)],
            pick_by_hash(TAGS, video),
            [", ".join(labels)],
            task="open",
            category="sound",
            group=f"youtube:{video}",
            meta={"field": "sound", "labels": labels, "start_s": start_s},
        )

    yield from convert_rows(csv_rows(path, COLUMNS, on_skip, header=COLUMNS), convert, on_skip)


def _class_names(path: Path, on_skip: OnSkip) -> dict[str, str]:
    """Identifier of a class (such as /m/068hy) -> its name, from the table of classes."""
    if not path.is_file():
        raise DataError(f"{path}: is missing; put AudioSet's table of classes beside the segments")
    rows = csv_rows(path, ("mid", "display_name"), on_skip)
    return {row["mid"]: text_field(row, "display_name", location) for location, row in rows}
