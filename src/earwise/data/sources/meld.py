"""MELD: utterances of a television series with emotion and sentiment, as `{train,dev,test}_sent_emo.csv`.

Source: Poria et al. 2019 (ACL); columns `Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,...`. The
clips are videos named `dia{D}_utt{U}.mp4`; an audio file of the same name is preferred, in the folder of the table or
of the split. The group is the dialogue, so that its utterances are always in one split.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    find_audio,
    pick_by_hash,
    text_field,
)
from earwise.data.sources.question_templates import EMOTION, SENTIMENT, TRANSCRIBE
from earwise.data.sources.row_readers import OnSkip, Row, csv_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "GPL-3.0 (annotations); audio from a television series, all rights with its owners"
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
EMOTIONS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
SENTIMENTS = ("neutral", "positive", "negative")
FOLDERS = {
    "train": ("train_splits", "train"),
    "val": ("dev_splits_complete", "dev", "val"),
    "test": ("output_repeated_splits_test", "test"),
}


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """Three Examples per row: emotion and sentiment (with all labels as choices), and transcription."""
    info = SourceInfo("MELD", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        words, emotion, sentiment = (text_field(row, key, location) for key in ("Utterance", "Emotion", "Sentiment"))
        dialogue, utterance = row["Dialogue_ID"], row["Utterance_ID"]
        if not dialogue.isdecimal() or not utterance.isdecimal():
            raise DataError(f"{location}: Dialogue_ID {dialogue!r}, Utterance_ID {utterance!r}: numbers are expected")
        if emotion not in EMOTIONS or sentiment not in SENTIMENTS:
            raise DataError(f"{location}: Emotion {emotion!r}, Sentiment {sentiment!r}: unknown label")
        stem = f"dia{dialogue}_utt{utterance}"
        folders = (*(f"{folder}/" for folder in FOLDERS.get(split, ())), "")
        audio = [
            find_audio(audio_root, (f"{folder}{stem}{end}" for end in (".wav", ".flac", ".mp4") for folder in folders))
        ]
        meta = {"speaker": row["Speaker"]}
        for field, templates, answer, choices in (
            ("emotion", EMOTION, emotion, EMOTIONS),
            ("sentiment", SENTIMENT, sentiment, SENTIMENTS),
            ("words", TRANSCRIBE, words, ()),
        ):
            yield build_example(
                info,
                f"meld-{split}-{stem}-{field}",
                audio,
                pick_by_hash(templates, stem),
                [answer],
                choices=choices,
                task="transcribe" if field == "words" else "recognition",
                category="speech",
                group=f"meld:{split}:{dialogue}",
                meta=meta | {"field": field},
            )

    yield from convert_rows(csv_rows(path, COLUMNS, on_skip), convert, on_skip)
