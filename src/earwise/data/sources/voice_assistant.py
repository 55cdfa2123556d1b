"""VoiceAssistant-400K: spoken questions with written answers, as Parquet files that hold the sound.

Source: Mini-Omni (Xie and Wu 2024, arXiv:2408.16725), `gpt-omni/VoiceAssistant-400K`, columns `split_name, index,
round, question, question_audio` (bytes of a WAV file), `answer` and `answer_snac` (codes of spoken answers, not read).
The user's turn is the sound alone, as in Qwen2-Audio's voice chat; the words are kept in `meta`. Clips are written to
the folder `voice-assistant-clips` in the audio folder.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import Clip, DatasetLocation, ForeignRow
from earwise.data.interchange.readers import parquet_tables
from earwise.data.sources.example_builder import SourceInfo, string_field
from earwise.data.sources.row_readers import OnSkip
from earwise.errors import DataError
from earwise.files import relative_path
from earwise.types import Audio, Example, Turn

LICENCE = "Apache-2.0 (as its authors state)"
COLUMNS = ("question_audio", "answer")
CLIPS_FOLDER = "voice-assistant-clips"


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per exchange; `path` is a Parquet file, or the folder of all of them.

    Raises:
        DataError: if the files are not those of this data set, or cannot be read.
    """
    info = SourceInfo("VoiceAssistant-400K", LICENCE, audio_root, split)
    rows = parquet_tables.read(DatasetLocation("parquet", path), ClipStore(audio_root / CLIPS_FOLDER))
    for number, row in enumerate(rows):
        if missing := [name for name in COLUMNS if name not in row.values]:
            raise DataError(
                f"{row.location}: column {missing[0]!r} is missing, found {', '.join(row.values)[:80]}; is this the "
                "published file?"
            )
        try:
            yield _example(row, number, info)
        except DataError as error:
            on_skip(str(error))


def _example(row: ForeignRow, number: int, info: SourceInfo) -> Example:
    clip = row.values["question_audio"]
    if not isinstance(clip, Clip):
        raise DataError(f"{row.location}: no sound in question_audio")
    dialogue = str(row.values.get("index") or number)
    return Example(
        id=f"voice-assistant-{info.split}-{number}",
        turns=(Turn("user", (Audio(Path(relative_path(clip.path, info.root)).as_posix()),)),),
        answer=(string_field(row.values, "answer", row.location).strip(),),
        task="voice-chat",
        category="speech",
        source=info.source,
        licence=info.licence,
        group=f"voice-assistant:{row.values.get('split_name') or ''}:{dialogue}",
        split=info.split,
        root=info.root,
        meta={"question_text": str(row.values.get("question") or "")},
    )
