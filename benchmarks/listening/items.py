"""An item of the page to listen to: a question, what the model answered, and what it answered under silence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.errors import DataError
from earwise.evaluation.results import SAMPLES
from earwise.types import Example
from listening.questions import skill_of


@dataclass(frozen=True, slots=True)
class Item:
    """A question of the evaluation with its answers."""

    example: Example
    row: Mapping[str, Any]
    """The row of `samples.jsonl`."""
    silent: Mapping[str, Any]
    """The row of the control `silence`."""

    @property
    def skill(self) -> str:
        """The heading of the page that the question belongs to."""
        return skill_of(self.example.task, self.example.meta.get("field"))

    @property
    def is_right(self) -> bool:
        """Whether the answer is right by the official score."""
        return bool(self.row["scores"]["official"])


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Id -> row of an evaluation.

    Args:
        folder: Folder that `earwise evaluate` wrote.
    Raises:
        DataError: if there is no evaluation.
    """
    path = folder / SAMPLES
    if not path.exists():
        raise DataError(f"{path}: does not exist; run the evaluation first")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def read_items(questions: Path, folder: Path) -> list[Item]:
    """All items of an evaluation with the control `silence`, in the order of the manifest.

    Args:
        questions: Manifest that was evaluated.
        folder: Folder of the evaluation.
    Raises:
        DataError: if a question has no answer yet.
    """
    rows, silent = read_rows(folder), read_rows(folder / "silence")
    items = []
    for example in manifest.read(questions):
        if example.id not in rows or example.id not in silent:
            raise DataError(f"{folder}: has no answer to {example.id!r}; run the evaluation to its end")
        items.append(Item(example, rows[example.id], silent[example.id]))
    return items
