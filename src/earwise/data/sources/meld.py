"""MELD: utterances of a television series with emotion and sentiment, as `{train,dev,test}_sent_emo.csv`.

Source: Poria et al. 2019 (ACL); columns `Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,...`. The
clips are videos named `dia{D}_utt{U}.mp4`; their sound is looked for beside them or in the split's folder. A dialogue
is the group: its utterances never stand in two splits.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import EMOTION, SENTIMENT, TRANSCRIBE
from earwise.data.sources.row_readers import OnSkip, Row
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
    """Emotion, sentiment (both with all labels as choices) and words of every utterance."""
    origin = SourceInfo("MELD", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        words, emotion, sentiment = (
            example_builder.text_field(row, key, where) for key in ("Utterance", "Emotion", "Sentiment")
        )
        dialogue, utterance = row["Dialogue_ID"], row["Utterance_ID"]
        if not dialogue.isdecimal() or not utterance.isdecimal():
            raise DataError(f"{where}: Dialogue_ID {dialogue!r}, Utterance_ID {utterance!r}: numbers are expected")
        if emotion not in EMOTIONS or sentiment not in SENTIMENTS:
            raise DataError(f"{where}: Emotion {emotion!r}, Sentiment {sentiment!r}: unknown label")
        stem = f"dia{dialogue}_utt{utterance}"
        places = (*(f"{folder}/" for folder in FOLDERS.get(split, ())), "")
        audio = [
            example_builder.find_audio(
                audio_root, (f"{place}{stem}{end}" for end in (".wav", ".flac", ".mp4") for place in places)
            )
        ]
        meta = {"speaker": row["Speaker"]}
        for field, wordings, answer, choices in (
            ("emotion", EMOTION, emotion, EMOTIONS),
            ("sentiment", SENTIMENT, sentiment, SENTIMENTS),
            ("words", TRANSCRIBE, words, ()),
        ):
            yield example_builder.build_example(
                origin,
                f"meld-{split}-{stem}-{field}",
                audio,
                example_builder.pick_by_hash(wordings, stem),
                [answer],
                choices=choices,
                task="transcribe" if field == "words" else "recognition",
                category="speech",
                group=f"meld:{split}:{dialogue}",
                meta=meta | {"field": field},
            )

    yield from example_builder.convert_rows(row_readers.csv_rows(path, COLUMNS, on_skip), make, on_skip)
