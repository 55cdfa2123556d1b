"""ADIFF, audio difference (CLD on Clotho, ACD on AudioCaps): explanations of how two clips differ, as CSV.

Source: Deshmukh et al. 2025 (ADIFF, arXiv:2502.04476), `data/{CLD,ACD}/*_adiff_{fewwords,sentence,detail}_answer.csv`
with the columns `taskname,filepath1,filepath2,caption1,caption2,input,answer`. There are three tiers of detail, which
`input` tells apart.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from earwise.data.sources import clotho
from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    pick_by_hash,
    short_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import DIFFERENCE
from earwise.data.sources.row_readers import OnSkip, Row, csv_rows
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
    """One Example with two clips per row."""

    def convert(location: str, row: Row) -> Iterator[Example]:
        subset, tier = SUBSETS.get(row["taskname"]), TIERS.get(row["input"])
        if subset is None or tier is None:
            raise DataError(
                f"{location}: taskname {row['taskname']!r}, input {row['input']!r:.60}: not a row of this data set"
            )
        clips = [string_field(row, key, location) for key in ("filepath1", "filepath2")]
        captions = [text_field(row, key, location) for key in ("caption1", "caption2")]
        answer = text_field(row, "answer", location)
        identifier = f"{subset.lower()}-{split}-{tier}-{short_hash(*clips, *captions, answer)}"
        info = SourceInfo(subset, LICENCE, audio_root, split)
        groups = [group_of(clip) for clip in clips]
        yield difference_example(info, identifier, clips, captions, answer, tier, subset, groups)

    yield from convert_rows(csv_rows(path, COLUMNS, on_skip), convert, on_skip)


def group_of(clip: str) -> str:
    """Group (the unit that must not cross splits) of a clip, from its path in ReasonAQA and ADIFF.

    >>> group_of("AudioCapsLarger/test/Y6BJ455B1aAs.wav"), group_of("ClothoV21/validation/heartbeat-40bpm.wav")
    ('youtube:6BJ455B1aAs', 'clotho:heartbeat-40bpm.wav')
    """
    name = PurePosixPath(clip).name
    return f"youtube:{name.removesuffix('.wav')[1:]}" if clip.startswith("AudioCaps") else clotho.group(name)


def difference_example(
    info: SourceInfo,
    identifier: str,
    clips: list[str],
    captions: list[str],
    answer: str,
    tier: int,
    subset: str,
    groups: list[str],
) -> Example:
    """Example that asks how the first clip differs from the second.

    Args:
        info: Source, licence, split and audio folder.
        identifier: Id of the example; also selects the wording of the question.
        clips: Paths of the two clips.
        captions: Their captions, kept in `meta`.
        answer: Explanation of the difference.
        tier: Level of detail: 1 few words, 2 one sentence, 3 in detail.
        subset: Part of ReasonAQA, CLD or ACD.
        groups: Groups of the two clips; neither may cross splits.
    """
    return build_example(
        info,
        identifier,
        clips,
        pick_by_hash(DIFFERENCE[tier], identifier),
        [answer],
        task="difference",
        category="sound",
        group=groups[0],
        meta={
            "subset": subset,
            "tier": tier,
            "caption1": captions[0],
            "caption2": captions[1],
            "clip_groups": sorted(set(groups)),
        },
    )
