"""AudioSet: the sound classes of 10 s YouTube clips, as CSV `YTID, start_seconds, end_seconds, positive_labels`.

Source: Gemmeke et al. 2017 (ICASSP), `{balanced_train,unbalanced_train,eval}_segments.csv`; the names of the classes
come from `class_labels_indices.csv`, which must lie beside it. Two million rows: nothing is held. A clip has several
classes in no order of importance: the answer to the open question is all of them, `meta.labels` lists them, and
`--choices` asks for one of them.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import TAGS
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY 4.0 (labels); audio from YouTube, rights with its authors"
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
CLASSES = "class_labels_indices.csv"


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example a clip, task `open`, with every class in `meta.labels`."""
    names = _names(path.with_name(CLASSES), on_skip)
    origin = SourceInfo("AudioSet", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        video, start = (
            example_builder.string_field(row, "YTID", where),
            example_builder.string_field(row, "start_seconds", where),
        )
        marks = [mark.strip() for mark in example_builder.string_field(row, "positive_labels", where).split(",")]
        if unknown := [mark for mark in marks if mark not in names]:
            raise DataError(f"{where}: class {unknown[0]!r} is none of {CLASSES}")
        try:
            begins_s = float(start)
        except ValueError:
            raise DataError(f"{where}: start_seconds is {start!r} where a number is expected") from None
        labels = [names[mark] for mark in marks]
        stems = (f"Y{video}", video, f"{video}_{begins_s:g}", f"{video}_{round(begins_s * 1000)}")
        folders = (f"{path.stem}/", "", f"{path.stem.removesuffix('_segments')}/")
        files = (f"{folder}{stem}{end}" for folder in folders for stem in stems for end in (".wav", ".flac"))
        yield example_builder.build_example(
            origin,
            f"audioset-{split}-{video}-{begins_s:g}",
            [example_builder.find_audio(audio_root, files)],
            example_builder.pick_by_hash(TAGS, video),
            [", ".join(labels)],
            task="open",
            category="sound",
            group=f"youtube:{video}",
            meta={"field": "sound", "labels": labels, "start_s": begins_s},
        )

    yield from example_builder.convert_rows(row_readers.csv_rows(path, COLUMNS, on_skip, header=COLUMNS), make, on_skip)


def _names(path: Path, on_skip: OnSkip) -> dict[str, str]:
    if not path.is_file():
        raise DataError(f"{path}: is missing; put AudioSet's table of classes beside the segments")
    rows = row_readers.csv_rows(path, ("mid", "display_name"), on_skip)
    return {row["mid"]: example_builder.text_field(row, "display_name", where) for where, row in rows}
