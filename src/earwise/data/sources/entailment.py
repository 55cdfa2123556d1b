"""Audio entailment (CLE on Clotho, ACE on AudioCaps): three hypotheses per clip, as CSV.

Source: Deshmukh et al. 2024 (arXiv:2407.18062), `data/{CLE,ACE}/*.csv` of its repository, with the columns
`Prompt,Dataset,Audio file,Caption,Entailment,Neutral,Contradiction,Full response`. CLE has one row per clip, with its
five captions as the text of a Python list; ACE has one row per caption and names files without their ending. The
options and their order are those of Mellow's prompt. The fourth option is never right, so the chance level is 1/3, not
1/4.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import audiocaps, clotho
from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    pick_by_hash,
    short_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import ENTAILMENT, ENTAILMENT_ANSWERS, ENTAILMENT_CHOICES
from earwise.data.sources.row_readers import OnSkip, Row, csv_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "see its repository (hypotheses); audio as Clotho and AudioCaps"
COLUMNS = ("Dataset", "Audio file", "Caption", "Entailment", "Neutral", "Contradiction")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """Three Examples per row, one for each hypothesis."""

    def convert(location: str, row: Row) -> Iterator[Example]:
        clip = string_field(row, "Audio file", location)
        dataset = string_field(row, "Dataset", location).lower()
        if dataset.startswith("clotho"):
            subset, audio, group = "CLE", clotho.locate(audio_root, split, clip), clotho.group(clip)
        elif dataset.startswith("audiocaps"):
            video = clip.removesuffix(".wav").removeprefix("Y")
            subset, audio, group = "ACE", audiocaps.locate(audio_root, split, video, "0"), f"youtube:{video}"
        else:
            raise DataError(f"{location}: Dataset {dataset!r} is neither ClothoV2 nor Audiocaps")
        info = SourceInfo(subset, LICENCE, audio_root, split)
        hypotheses = {kind: text_field(row, kind.capitalize(), location) for kind in ENTAILMENT_ANSWERS}
        caption = text_field(row, "Caption", location)
        for kind, hypothesis in hypotheses.items():
            identifier = f"{subset.lower()}-{split}-{short_hash(clip, caption, kind, hypothesis)}"
            yield hypothesis_example(info, identifier, audio, hypothesis, kind, group, subset)

    yield from convert_rows(csv_rows(path, COLUMNS, on_skip), convert, on_skip)


def hypothesis_example(
    info: SourceInfo, identifier: str, audio: str, hypothesis: str, kind: str, group: str, subset: str
) -> Example:
    """Example that asks whether the audio makes the hypothesis true, false or plausible.

    Args:
        info: Source, licence, split and audio folder.
        identifier: Id of the example; also selects the wording of the question.
        audio: Path of the clip.
        hypothesis: Statement about the clip.
        kind: Relation of audio and hypothesis, a key of `ENTAILMENT_ANSWERS`.
        group: Group of the clip.
        subset: Part of ReasonAQA, CLE or ACE.

    >>> example = hypothesis_example(
    ...     SourceInfo("CLE", "", Path(), "val"), "a", "a.wav", "A dog barks.", "neutral", "g", "CLE"
    ... )
    >>> example.answer
    ('it is plausible',)
    """
    return build_example(
        info,
        identifier,
        [audio],
        pick_by_hash(ENTAILMENT, identifier).format(hypothesis=hypothesis.rstrip(".")),
        [ENTAILMENT_CHOICES[ENTAILMENT_ANSWERS[kind]]],
        choices=ENTAILMENT_CHOICES,
        task="entailment",
        category="sound",
        group=group,
        meta={"subset": subset, "hypothesis": hypothesis, "relation": kind},
    )
