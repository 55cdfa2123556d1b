"""Common Voice: read sentences in many languages, as `LANGUAGE/{train,dev,test}.tsv` beside a folder `clips`.

Source: Ardila et al. 2020 (LREC). Columns `client_id, path, sentence, up_votes, down_votes, ..., locale`. XS-CoT uses
the data set in its alignment stage (ja, de, fr), Qwen2-Audio as a benchmark. The group is the speaker (`client_id`).
Quotes are ordinary characters in these tables.
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
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import TRANSCRIBE
from earwise.data.sources.row_readers import OnSkip, Row, csv_rows
from earwise.types import Example

LICENCE = "CC0 1.0"
COLUMNS = ("client_id", "path", "sentence")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One transcription Example per row; the language is the row's `locale`, else the folder's name."""
    info = SourceInfo("Common Voice", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        clip, sentence = (
            string_field(row, "path", location),
            text_field(row, "sentence", location),
        )
        language = row.get("locale") or path.parent.name or "en"
        yield build_example(
            info,
            f"common-voice-{language}-{Path(clip).stem}",
            [locate(audio_root, clip)],
            pick_by_hash(TRANSCRIBE, clip),
            [sentence.strip('"').replace('""', '"') if sentence.startswith('"') else sentence],
            task="transcribe",
            category="speech",
            language=language,
            group=f"common-voice:{short_hash(string_field(row, 'client_id', location))}",
        )

    yield from convert_rows(csv_rows(path, COLUMNS, on_skip, delimiter="\t", quoted=False), convert, on_skip)


def locate(audio_root: Path, clip: str) -> str:
    """Path of a clip relative to `audio_root`; older tables omit the ending `.mp3`."""
    stem = clip.removesuffix(".mp3")
    return find_audio(audio_root, (f"{folder}{stem}{end}" for folder in ("clips/", "") for end in (".mp3", ".wav")))
