"""Common Voice: read sentences in many languages, as `LANGUAGE/{train,dev,test}.tsv` beside a folder `clips`.

Source: Ardila et al. 2020 (LREC). Columns `client_id, path, sentence, up_votes, down_votes, ..., locale`; used for the
alignment stage of XS-CoT (ja, de, fr) and tested by Qwen2-Audio. A voice (`client_id`) is the group. Quotes are
ordinary characters in these tables.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import TRANSCRIBE
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.types import Example

LICENCE = "CC0 1.0"
COLUMNS = ("client_id", "path", "sentence")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One transcription Example a row; the language is the row's `locale`, or else the folder's name."""
    origin = SourceInfo("Common Voice", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        clip, said = (
            example_builder.string_field(row, "path", where),
            example_builder.text_field(row, "sentence", where),
        )
        language = row.get("locale") or path.parent.name or "en"
        yield example_builder.build_example(
            origin,
            f"common-voice-{language}-{Path(clip).stem}",
            [locate(audio_root, clip)],
            example_builder.pick_by_hash(TRANSCRIBE, clip),
            [said.strip('"').replace('""', '"') if said.startswith('"') else said],
            task="transcribe",
            category="speech",
            language=language,
            group=f"common-voice:{example_builder.short_hash(example_builder.string_field(row, 'client_id', where))}",
        )

    yield from example_builder.convert_rows(
        row_readers.csv_rows(path, COLUMNS, on_skip, delimiter="\t", quoted=False), make, on_skip
    )


def locate(audio_root: Path, clip: str) -> str:
    """Where the clip lies; the tables say `.mp3`, old ones leave it out."""
    stem = clip.removesuffix(".mp3")
    return example_builder.find_audio(
        audio_root, (f"{folder}{stem}{end}" for folder in ("clips/", "") for end in (".mp3", ".wav"))
    )
