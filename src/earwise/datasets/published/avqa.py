"""AVQA for models that hear and do not see: which questions to leave out.

Between `data/sources/avqa.py` and the manifest. R1-AQA keeps every question; Ke-Omni-R (the public work of SARI's
authors) leaves out `View` questions and those with the letters `color`. Pure; each question that is left out has its
reason, so that they can be counted.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from earwise.errors import ConfigError
from earwise.types import Example


def is_visual(example: Example) -> bool:
    """The authors of AVQA say that this question needs the picture alone."""
    return example.meta.get("question_relation") == "View"


def is_colour(example: Example) -> bool:
    """The question asks for a colour (also British spelling, which Ke-Omni-R's rule lets pass)."""
    return re.search(r"colou?r", example.question, re.IGNORECASE) is not None


FILTERS: Mapping[str, Callable[[Example], bool]] = {"visual": is_visual, "colour": is_colour}


def kept(examples: Iterable[Example], drop: Iterable[str], dropped: Counter[str]) -> Iterator[Example]:
    """The examples that no filter in `drop` takes out; `dropped` counts the others by the first filter that did.

    Raises:
        ConfigError: for an unknown filter.
    """
    names = tuple(drop)
    if unknown := [name for name in names if name not in FILTERS]:
        raise ConfigError(f"filter {unknown[0]!r} is none of {', '.join(FILTERS)}")
    for example in examples:
        reason = next((name for name in names if FILTERS[name](example)), None)
        if reason is None:
            yield example
        else:
            dropped[reason] += 1
