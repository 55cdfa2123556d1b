"""Audio difference (CLD on Clotho, ACD on AudioCaps): two clips and what sets them apart, in three tiers, as CSV.

Source: Deshmukh et al. 2025 (ADIFF, arXiv:2502.04476), `data/{CLD,ACD}/*_adiff_{fewwords,sentence,detail}_answer.csv`
with the columns `taskname,filepath1,filepath2,caption1,caption2,input,answer`. The tier stands in `input`.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from earwise.data.sources import clotho, example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import DIFFERENCE
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "see its repository (explanations); audio as Clotho and AudioCaps"
COLUMNS = ("taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer")
TIERS = {
    "explain the difference in few words": 1,
    "explain the difference in a sentence": 2,
    "explain the difference in detail": 3,
}
SUBSETS = {"clothov21": "CLD", "audiocaps": "ACD"}


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example of two clips a row."""

    def make(where: str, row: Row) -> Iterator[Example]:
        subset, tier = SUBSETS.get(row["taskname"]), TIERS.get(row["input"])
        if subset is None or tier is None:
            raise DataError(f"{where}: taskname {row['taskname']!r}, input {row['input']!r:.60}: not of this data set")
        clips = [example_builder.string_field(row, key, where) for key in ("filepath1", "filepath2")]
        captions = [example_builder.text_field(row, key, where) for key in ("caption1", "caption2")]
        answer = example_builder.text_field(row, "answer", where)
        identifier = f"{subset.lower()}-{split}-{tier}-{example_builder.short_hash(*clips, *captions, answer)}"
        origin = SourceInfo(subset, LICENCE, audio_root, split)
        yield difference_example(origin, identifier, clips, captions, answer, tier, subset)

    yield from example_builder.convert_rows(row_readers.csv_rows(path, COLUMNS, on_skip), make, on_skip)


def group_of(clip: str) -> str:
    """The unit that must not cross splits, from a path as ReasonAQA and ADIFF write it.

    >>> group_of("AudioCapsLarger/test/Y6BJ455B1aAs.wav"), group_of("ClothoV21/validation/heartbeat-40bpm.wav")
    ('youtube:6BJ455B1aAs', 'clotho:heartbeat-40bpm.wav')
    """
    name = PurePosixPath(clip).name
    return f"youtube:{name.removesuffix('.wav')[1:]}" if clip.startswith("AudioCaps") else clotho.group(name)


def difference_example(
    origin: SourceInfo, identifier: str, clips: list[str], captions: list[str], answer: str, tier: int, subset: str
) -> Example:
    """How the first clip differs from the second, in few words (tier 1), a sentence (2) or in detail (3)."""
    return example_builder.build_example(
        origin,
        identifier,
        clips,
        example_builder.pick_by_hash(DIFFERENCE[tier], identifier),
        [answer],
        task="difference",
        category="sound",
        group=group_of(clips[0]),
        meta={"subset": subset, "tier": tier, "caption1": captions[0], "caption2": captions[1]},
    )
