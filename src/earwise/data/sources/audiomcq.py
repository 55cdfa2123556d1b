"""AudioMCQ: 571k multiple-choice questions on public clips with chains of thought, as JSON lines.

Source: He et al. 2025 (arXiv:2509.21060), and its subset of questions that need the sound, StrongAC-GeminiCoT. Fields
`source_dataset, id, question_type` (sound, music, speech, temporal), `audio_path, question, choices` (a list), `answer`
(an option's text), and chains of thought under the names in `CHAIN_FIELDS`: the first one present becomes the
reasoning. All chains are kept in `meta`, as is `audio-contribution` (weak or strong: does the answer need the audio?).
The names of the chain fields are taken from public converters of the data set, or guessed; a row without any has no
reasoning.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from earwise.answers import split_reasoning
from earwise.data.sources import clotho
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

LICENCE = "Apache-2.0 (questions); audio by its origin"
FIELDS = ("audio_path", "question", "choices", "answer")
CHAIN_FIELDS = ("gemini_cot", "unstructured_cot", "unstructured-cot", "structured_cot", "structured-cot", "cot")
META_FIELDS = ("source_dataset", "question_type", "audio-contribution", "audio_contribution", *CHAIN_FIELDS)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per question, with the options in their published order."""
    info = SourceInfo("AudioMCQ", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        number = location.rpartition(" ")[2]
        listed = row["choices"]
        if not isinstance(listed, list) or not all(isinstance(choice, str) and choice.strip() for choice in listed):
            raise DataError(f"{location}: choices is {listed!r:.60} where a list of texts is expected")
        choices = tuple(choice.strip() for choice in listed)
        answer, question = (
            string_field(row, "answer", location).strip(),
            text_field(row, "question", location),
        )
        if choices.count(answer) != 1 or len(set(choices)) < len(choices) or len(choices) < 2:
            raise DataError(f"{location}: answer {answer!r:.60} is not one of {len(choices)} different choices")
        clip = string_field(row, "audio_path", location).replace("\\", "/")
        dataset, kind = str(row.get("source_dataset") or ""), str(row.get("question_type") or "")
        yield build_example(
            info,
            f"audiomcq-{path.stem}-{number}",
            [find_audio(audio_root, (clip, PurePosixPath(clip).name))],
            question,
            [answer],
            choices=choices,
            reasoning=_chain(row),
            task="multiple_choice",
            category=kind if kind in ("sound", "music", "speech") else "sound",
            group=_group(dataset, clip),
            meta={key: row[key] for key in META_FIELDS if row.get(key) is not None},
        )

    yield from convert_rows(json_rows(path, FIELDS, on_skip), convert, on_skip)


def _chain(row: Row) -> str | None:
    """The first chain of thought of a row, without the answer that may follow it."""
    for key in CHAIN_FIELDS:
        chain = row.get(key)
        if isinstance(chain, str) and chain.strip():
            return split_reasoning(chain)[0] or chain.strip()
    return None


def _group(dataset: str, clip: str) -> str:
    """Group (the unit that must not cross splits) of a clip, by the data set that it comes from."""
    name = PurePosixPath(clip).name
    stem = PurePosixPath(name).stem
    if dataset.lower().startswith("clotho"):
        return clotho.group(name)
    if dataset.lower().startswith(("audiocaps", "compa", "musiccaps")):  # their clips are videos of AudioSet
        return f"youtube:{stem.removeprefix('Y')[:11] if len(stem) == 12 else stem[:11]}"
    return f"audiomcq:{dataset}:{stem}"
