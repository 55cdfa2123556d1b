"""The editions of MMAU's test-mini, told apart item by item.

Two editions with 1,000 items each are quoted under one name; 636 items are equal in both, 364 differ. A part of one is
still recognised, and a mixture of both is refused: no published figure is of such a file. `mmau_editions.json` holds
hashes of the items of the files at the named commits of Sakshi113/MMAU, and none of their content.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from earwise.errors import DataError

OLD, NEW = "test-mini old (1f675a9)", "test-mini v05.15.25 (f0a4a97)"
NUM_ITEMS = 1000
"""Number of items of each edition."""
HASHED_FIELDS = ("id", "question", "choices", "answer")


def item_hash(row: Mapping[str, Any]) -> str:
    """First 8 hexadecimal digits of the SHA-256 of an item's content."""
    content = json.dumps([row.get(name) for name in HASHED_FIELDS])
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def part_of_edition(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The edition that these items are a part of.

    Args:
        rows: Items with `choices` as lists.
    Returns:
        Name of the edition and number of items; None if the items are not all of one edition.
    Raises:
        DataError: if some items are of one edition only and some of the other only.
    """
    owners = Counter(_editions().get(item_hash(row), "neither") for row in rows)
    if owners["old"] and owners["new"]:
        raise DataError(
            f"{owners['old']} of {len(rows)} items are those of {OLD}, {owners['new']} those of {NEW}: two editions "
            "are mixed, and no figure of either belongs to them; take the file of one edition"
        )
    if owners["neither"]:
        return None
    number = f"{len(rows)} of {NUM_ITEMS} items"
    if owners["old"] or owners["new"]:
        return f"{OLD if owners['old'] else NEW}, {number}"
    return f"test-mini, {number}, which are equal in both editions"


@cache
def _editions() -> dict[str, str]:
    """Hash of an item -> `old`, `new` or `both`."""
    text = files("earwise.evaluation.published").joinpath("mmau_editions.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return {item: edition for edition in ("both", "old", "new") for line in content[edition] for item in line.split()}
