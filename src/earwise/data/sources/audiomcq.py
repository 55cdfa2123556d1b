"""AudioMCQ: 571k multiple-choice questions on public clips with chains of thought, as JSON lines.

Source: He et al. 2025 (arXiv:2509.21060), and its subset of questions that need the sound, StrongAC-GeminiCoT. Fields
`source_dataset, id, question_type` (sound, music, speech, temporal), `audio_path, question, choices` (a list), `answer`
(an option's text), and chains under the names in `CHAINS`: the first that is there is the reasoning, all stay in
`meta`, as does `audio-contribution` (weak or strong: does the answer need the sound?). The chains' names were read in
other people's converters or are likely ones; a row without any has no reasoning.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from earwise.answers import split_reasoning
from earwise.data.sources import clotho, example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "Apache-2.0 (questions); audio by its origin"
FIELDS = ("audio_path", "question", "choices", "answer")
CHAINS = ("gemini_cot", "unstructured_cot", "unstructured-cot", "structured_cot", "structured-cot", "cot")
KEPT = ("source_dataset", "question_type", "audio-contribution", "audio_contribution", *CHAINS)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example a question, options in their order."""
    origin = SourceInfo("AudioMCQ", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        number = where.rpartition(" ")[2]
        listed = row["choices"]
        if not isinstance(listed, list) or not all(isinstance(one, str) and one.strip() for one in listed):
            raise DataError(f"{where}: choices is {listed!r:.60} where a list of texts is expected")
        choices = tuple(one.strip() for one in listed)
        answer, asked = (
            example_builder.string_field(row, "answer", where).strip(),
            example_builder.text_field(row, "question", where),
        )
        if choices.count(answer) != 1 or len(set(choices)) < len(choices) or len(choices) < 2:
            raise DataError(f"{where}: answer {answer!r:.60} is not one of {len(choices)} different choices")
        clip = example_builder.string_field(row, "audio_path", where).replace("\\", "/")
        origin_set, kind = str(row.get("source_dataset") or ""), str(row.get("question_type") or "")
        yield example_builder.build_example(
            origin,
            f"audiomcq-{path.stem}-{number}",
            [example_builder.find_audio(audio_root, (clip, PurePosixPath(clip).name))],
            asked,
            [answer],
            choices=choices,
            reasoning=_chain(row),
            task="multiple_choice",
            category=kind if kind in ("sound", "music", "speech") else "sound",
            group=_group(origin_set, clip),
            meta={key: row[key] for key in KEPT if row.get(key) is not None},
        )

    yield from example_builder.convert_rows(row_readers.json_rows(path, FIELDS, on_skip), make, on_skip)


def _chain(row: Row) -> str | None:
    """The first chain of a row, without the answer that may follow it."""
    for key in CHAINS:
        said = row.get(key)
        if isinstance(said, str) and said.strip():
            return split_reasoning(said)[0] or said.strip()
    return None


def _group(origin: str, clip: str) -> str:
    name = PurePosixPath(clip).name
    stem = PurePosixPath(name).stem
    if origin.lower().startswith("clotho"):
        return clotho.group(name)
    if origin.lower().startswith(("audiocaps", "compa", "musiccaps")):  # all of them AudioSet's videos
        return f"youtube:{stem.removeprefix('Y')[:11] if len(stem) == 12 else stem[:11]}"
    return f"audiomcq:{origin}:{stem}"
