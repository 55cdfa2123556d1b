"""Audio entailment (CLE on Clotho, ACE on AudioCaps): three hypotheses a clip, as CSV.

Source: Deshmukh et al. 2024 (arXiv:2407.18062), `data/{CLE,ACE}/*.csv` of its repository, with the columns
`Prompt,Dataset,Audio file,Caption,Entailment,Neutral,Contradiction,Full response`. CLE has a row a clip and its five
captions as the text of a Python list; ACE has a row a caption and names files without their ending. The options are
those of Mellow's prompt, in its order; the key is never the fourth, so a chance of 1/3 is the one to beat.
"""

from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import audiocaps, clotho, example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import ENTAILMENT, ENTAILMENT_ANSWERS, ENTAILMENT_CHOICES
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "see its repository (hypotheses); audio as Clotho and AudioCaps"
COLUMNS = ("Dataset", "Audio file", "Caption", "Entailment", "Neutral", "Contradiction")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """Three Examples a row, one for each hypothesis."""

    def make(where: str, row: Row) -> Iterator[Example]:
        clip = example_builder.string_field(row, "Audio file", where)
        dataset = example_builder.string_field(row, "Dataset", where).lower()
        if dataset.startswith("clotho"):
            subset, audio, group = "CLE", clotho.locate(audio_root, split, clip), clotho.group(clip)
        elif dataset.startswith("audiocaps"):
            video = clip.removesuffix(".wav").removeprefix("Y")
            subset, audio, group = "ACE", audiocaps.locate(audio_root, split, video, "0"), f"youtube:{video}"
        else:
            raise DataError(f"{where}: Dataset {dataset!r} is neither ClothoV2 nor Audiocaps")
        origin = SourceInfo(subset, LICENCE, audio_root, split)
        hypotheses = {kind: example_builder.text_field(row, kind.capitalize(), where) for kind in ENTAILMENT_ANSWERS}
        caption = example_builder.text_field(row, "Caption", where)
        for kind, hypothesis in hypotheses.items():
            identifier = f"{subset.lower()}-{split}-{example_builder.short_hash(clip, caption, kind, hypothesis)}"
            yield hypothesis_example(origin, identifier, audio, hypothesis, kind, group, subset)

    yield from example_builder.convert_rows(row_readers.csv_rows(path, COLUMNS, on_skip), make, on_skip)


def hypothesis_example(
    origin: SourceInfo, identifier: str, audio: str, hypothesis: str, kind: str, group: str, subset: str
) -> Example:
    """Does the audio make the hypothesis true, false or possible?

    >>> made = hypothesis_example(
    ...     SourceInfo("CLE", "", Path(), "val"), "a", "a.wav", "A dog barks.", "neutral", "g", "CLE"
    ... )
    >>> made.answer
    ('it is plausible',)
    """
    return example_builder.build_example(
        origin,
        identifier,
        [audio],
        example_builder.pick_by_hash(ENTAILMENT, identifier).format(hypothesis=hypothesis.rstrip(".")),
        [ENTAILMENT_CHOICES[ENTAILMENT_ANSWERS[kind]]],
        choices=ENTAILMENT_CHOICES,
        task="entailment",
        category="sound",
        group=group,
        meta={"subset": subset, "hypothesis": hypothesis, "relation": kind},
    )
