"""LibriSpeech: read English books, as folders `SPLIT/SPEAKER/CHAPTER/` with a `.trans.txt` beside the FLAC files.

Source: Panayotov et al. 2015 (ICASSP). Name the folder of one split (`train-clean-100`, `dev-other` ...) or the one
above them. The words are in capitals there and are put into small letters here: a model should not learn to shout.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import TRANSCRIBE
from earwise.data.sources.row_readers import OnSkip
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY 4.0"


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One transcription Example an utterance, by speaker and chapter; the split is told by the folder's name.

    Raises:
        DataError: if there are no transcripts.
    """
    lists = sorted(path.rglob("*.trans.txt"))
    if not lists:
        raise DataError(f"{path}: holds no .trans.txt; name a LibriSpeech folder")
    for transcript in lists:
        part = next((folder.name for folder in transcript.parents if folder.name[:4] in ("trai", "dev-", "test")), "")
        origin = SourceInfo(
            "LibriSpeech", LICENCE, audio_root, example_builder.split_from_name(Path(part)) if part else split
        )
        for where, line in row_readers.text_lines(transcript):
            stem, _, words = line.partition(" ")
            if not words.strip() or stem.count("-") != 2:
                on_skip(f"{where}: {line[:40]!r} is no utterance and its words")
                continue
            audio = transcript.with_name(f"{stem}.flac")
            yield example_builder.build_example(
                origin,
                f"librispeech-{stem}",
                [audio.relative_to(audio_root).as_posix() if audio.is_relative_to(audio_root) else str(audio)],
                example_builder.pick_by_hash(TRANSCRIBE, stem),
                [words.strip().lower()],
                task="transcribe",
                category="speech",
                group=f"librispeech:{stem.split('-')[0]}",
                meta={"part": part},
            )
