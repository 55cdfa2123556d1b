"""LibriSpeech: read English books, as folders `SPLIT/SPEAKER/CHAPTER/` of FLAC files with a `.trans.txt` file.

Source: Panayotov et al. 2015 (ICASSP). `path` is the folder of one split (`train-clean-100`, `dev-other` ...) or the
folder above the splits. The published transcripts are in capital letters; they are converted to lower case.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources.example_builder import SourceInfo, build_example, pick_by_hash, split_from_name
from earwise.data.sources.question_templates import TRANSCRIBE
from earwise.data.sources.row_readers import OnSkip, text_lines
from earwise.errors import DataError
from earwise.files import relative_path
from earwise.types import Example

LICENCE = "CC BY 4.0"


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One transcription Example per utterance, by speaker and chapter; the folder's name determines the split.

    Raises:
        DataError: if the folder contains no transcripts.
    """
    transcripts = sorted(path.rglob("*.trans.txt"))
    if not transcripts:
        raise DataError(f"{path}: holds no .trans.txt; name a LibriSpeech folder")
    for transcript in transcripts:
        part = next((folder.name for folder in transcript.parents if folder.name[:4] in ("trai", "dev-", "test")), "")
        info = SourceInfo("LibriSpeech", LICENCE, audio_root, split_from_name(Path(part)) if part else split)
        for location, line in text_lines(transcript):
            stem, _, words = line.partition(" ")
            if not words.strip() or stem.count("-") != 2:
                on_skip(f"{location}: {line[:40]!r} is not an utterance id followed by its words")
                continue
            audio = transcript.with_name(f"{stem}.flac")
            yield build_example(
                info,
                f"librispeech-{stem}",
                [Path(relative_path(audio, audio_root)).as_posix()],
                pick_by_hash(TRANSCRIBE, stem),
                [words.strip().lower()],
                task="transcribe",
                category="speech",
                group=f"librispeech:{stem.split('-')[0]}",
                meta={"part": part},
            )
