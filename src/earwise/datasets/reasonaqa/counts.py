"""The paper's table of ReasonAQA, and the comparison of a build with it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from earwise.types import Example

SPLITS = ("train", "val", "test")
PUBLISHED: Mapping[str, tuple[int, int, int]] = {
    "Clotho caption": (19_195, 5_225, 5_225),
    "AudioCaps caption": (48_660, 494, 4_785),
    "ClothoAQA": (14_088, 4_128, 5_676),
    "CLE": (11_511, 3_132, 3_135),
    "ACE": (0, 0, 14_355),
    "CLD": (57_585, 15_675, 15_675),
    "ACD": (145_980, 7_368, 14_040),
    "Clotho-MCQ": (95_551, 26_054, 26_031),
    "Clotho-Detail": (94_838, 25_785, 25_851),
    "AudioCaps-MCQ": (241_531, 12_236, 23_672),
    "AudioCaps-Detail": (239_132, 12_110, 23_355),
}
"""Rows of each part in train, val and test (Mellow, arXiv:2503.08540, data set table of its repository); 1,242,078 in
all. CLE and ACE are the entailment parts of Clotho and AudioCaps, CLD and ACD the difference parts."""


@dataclass(frozen=True, slots=True)
class CountComparison:
    """The number of rows in one cell of the table."""

    subset: str
    """Part of ReasonAQA."""
    split: str
    """Split of the rows."""
    num_built: int
    """Number of rows in the build."""
    published: int | None
    """Number of rows in the paper's table; None if the table has no such part."""

    @property
    def same(self) -> bool:
        """Whether both numbers agree."""
        return self.num_built == self.published


def subset_of(example: Example) -> tuple[str, str]:
    """The cell of an example: its part (`meta.subset`, else its source) and its split."""
    return str(example.meta.get("subset") or example.source), example.split


def count_subsets(examples: Iterable[Example]) -> Counter[tuple[str, str]]:
    """Number of examples in each cell."""
    return Counter(map(subset_of, examples))


def compare_counts(counts: Mapping[tuple[str, str], int]) -> list[CountComparison]:
    """Compare counts from `count_subsets` with the paper: every cell of its table, then the parts that it lacks."""
    cells = [
        CountComparison(subset, split, counts.get((subset, split), 0), published[column])
        for subset, published in PUBLISHED.items()
        for column, split in enumerate(SPLITS)
    ]
    unpublished = sorted(cell for cell, number in counts.items() if number and cell[0] not in PUBLISHED)
    return cells + [CountComparison(subset, split, counts[subset, split], None) for subset, split in unpublished]
