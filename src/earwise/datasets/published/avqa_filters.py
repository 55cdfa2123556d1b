"""Leaves out questions of AVQA that a model without sight cannot answer.

Between `data/sources/avqa.py` and the manifest. R1-AQA (arXiv:2503.11197) keeps every question; Ke-Omni-R
(shuaijiang/Ke-Omni-R, public work of SARI's authors) leaves out questions about the picture alone and those that
contain "color". Every question that is left out is counted by the reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from earwise.errors import ConfigError
from earwise.types import Example


def is_visual(example: Example) -> bool:
    """Whether AVQA's authors mark the question as one about the picture alone."""
    return example.meta.get("question_relation") == "View"


def is_about_colour(example: Example) -> bool:
    """Whether the question mentions a colour, in American or British spelling (Ke-Omni-R looks for the former only)."""
    return re.search(r"colou?r", example.question, re.IGNORECASE) is not None


FILTERS: Mapping[str, Callable[[Example], bool]] = {"visual": is_visual, "colour": is_about_colour}
"""Name of a filter -> whether it leaves an example out."""


def filter_questions(
    examples: Iterable[Example], filters: Iterable[str], num_dropped: Counter[str]
) -> Iterator[Example]:
    """Leave out questions.

    Args:
        examples: The questions; consumed one by one.
        filters: Names of the filters to apply, keys of `FILTERS`.
        num_dropped: Gains the number of questions left out, by the first filter that applies to each.
    Raises:
        ConfigError: for an unknown filter.
    """
    names = tuple(filters)
    if unknown := [name for name in names if name not in FILTERS]:
        raise ConfigError(f"filter {unknown[0]!r} is none of {', '.join(FILTERS)}")
    for example in examples:
        reason = next((name for name in names if FILTERS[name](example)), None)
        if reason is None:
            yield example
        else:
            num_dropped[reason] += 1
